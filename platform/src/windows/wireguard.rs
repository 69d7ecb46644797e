//! WireGuardNT by the functions of its own library. An adapter lives as long as the process that created it, whatever
//! ends that process: after `kill -9` there is no tunnel, and the filters of the kill switch stay.

use std::collections::HashMap;
use std::ffi::c_void;
use std::io;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::ERROR_MORE_DATA;
use windows_sys::core::GUID;
use zeroize::Zeroize as _;

use super::dll::{self, Handle};
use super::interface;
use super::text::wide;
use crate::types::*;
use crate::wfp::sublayer;
use crate::{Error, Result, WireGuard, wireguard_nt};

/// Longest interface name, in UTF-16 units with the zero: `MAX_ADAPTER_NAME` of WireGuardNT (`api/adapter.h`).
const NAME_MAX: usize = 128;
/// `WIREGUARD_ADAPTER_STATE_UP`.
const UP: i32 = 1;
/// First size of a buffer for an answer, bytes: some 50 peers.
const ANSWER: usize = 8 << 10;
/// Longest answer taken, bytes: some 100,000 peers.
const ANSWER_MAX: usize = 32 << 20;
/// How long the adapter of a process that has just died may need to go.
const GONE: Duration = Duration::from_secs(5);

/// An adapter that this process created.
struct Adapter(Handle);

// SAFETY: WireGuardNT's functions may be called from any thread; the table below gives a handle to one at a time.
unsafe impl Send for Adapter {}

impl Drop for Adapter {
    fn drop(&mut self) {
        if let Ok(api) = dll::api() {
            // SAFETY: created by us, closed once; that removes it.
            unsafe { (api.close)(self.0) };
        }
    }
}

/// The adapters of this process, by name.
fn adapters() -> MutexGuard<'static, HashMap<String, Adapter>> {
    static ADAPTERS: LazyLock<Mutex<HashMap<String, Adapter>>> = LazyLock::new(Mutex::default);
    ADAPTERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last(operation: String) -> Error {
    Error::system(operation, io::Error::last_os_error())
}

/// Whether the library is there and loads; the error says what is wrong with it.
pub fn kernel_wireguard() -> Result<bool> {
    dll::api().map(|_| true)
}

/// The WireGuard of a back end.
pub fn wireguard(backend: &Backend) -> Result<Box<dyn WireGuard>> {
    match backend {
        Backend::Kernel => Ok(Box::new(NtWireGuard)),
        Backend::Userspace => Err(Error::Unsupported {
            what: "the userspace back end",
            instead: "leave --backend out: WireGuardNT comes with the bundle",
        }),
    }
}

/// The adapter's GUID, always the same for a name: Windows keeps a network profile and DNS settings for each.
pub(super) fn guid(interface: &str) -> GUID {
    // another number than the sublayer's, by one bit
    GUID::from_u128(sublayer(interface) ^ 1 << 127)
}

/// Creates an adapter, down.
pub(super) fn create(name: &str) -> Result<()> {
    let operation = || format!("create interface {name}");
    let wide_name = wide(name);
    if name.is_empty() || wide_name.len() > NAME_MAX || wide_name[..wide_name.len() - 1].contains(&0) {
        return Err(Error::system(operation(), io::Error::new(io::ErrorKind::InvalidInput, "not an interface name")));
    }
    // that of a process that was killed goes by itself, a little later
    wait_gone(name, operation)?;
    let api = dll::api()?;
    let (kind, guid) = (wide(interface::TUNNEL_TYPE), guid(name));
    // SAFETY: the texts end with zero, and all three live through the call.
    let handle = unsafe { (api.create)(wide_name.as_ptr(), kind.as_ptr(), &raw const guid) };
    if handle.is_null() {
        return Err(last(operation()));
    }
    adapters().insert(name.to_owned(), Adapter(handle));
    Ok(())
}

/// Removes an adapter. That of another process goes with its process.
pub(super) fn delete(name: &str) -> Result<()> {
    let ours = adapters().remove(name);
    drop(ours);
    wait_gone(name, || format!("delete interface {name}"))
}

fn wait_gone(name: &str, operation: impl FnOnce() -> String) -> Result<()> {
    let started = Instant::now();
    while interface::luid(name)?.is_some() {
        if started.elapsed() >= GONE {
            let why = io::Error::new(io::ErrorKind::ResourceBusy, "a running process holds an adapter of that name");
            return Err(Error::system(operation(), why));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Brings an adapter of ours up. Its outer packets are this process' from here on.
pub(super) fn up(name: &str) -> Result<()> {
    with(name, "bring up", |handle, api| {
        // SAFETY: the handle is open.
        unsafe { (api.set_state)(handle, UP) }
    })
}

/// Calls a function of the library that answers 0 for failure.
fn with(name: &str, verb: &str, call: impl FnOnce(Handle, &dll::Api) -> i32) -> Result<()> {
    let operation = || format!("{verb} interface {name}");
    let (api, adapters) = (dll::api()?, adapters());
    let Some(adapter) = adapters.get(name) else {
        return Err(Error::system(
            operation(),
            io::Error::new(io::ErrorKind::NotFound, "this process has none so named"),
        ));
    };
    if call(adapter.0, api) == 0 { Err(last(operation())) } else { Ok(()) }
}

/// WireGuardNT.
#[derive(Debug)]
pub struct NtWireGuard;

impl WireGuard for NtWireGuard {
    fn configure(&mut self, interface: &str, config: &DeviceConfig) -> Result<()> {
        if config.fwmark.is_some_and(|mark| mark != 0) {
            return Err(Error::Unsupported {
                what: "an fwmark on outer packets",
                instead: "leave it out: WireGuardNT finds its way beside its own adapter",
            });
        }
        let bytes = wireguard_nt::encode(config);
        let mut buffer = Aligned::new(bytes.len());
        buffer.bytes().copy_from_slice(&bytes);
        with(interface, "configure", |handle, api| {
            // SAFETY: the handle is open; the buffer is aligned, and its length is given.
            unsafe { (api.set_configuration)(handle, buffer.0.as_ptr().cast(), bytes.len() as u32) }
        })
    }

    fn state(&mut self, interface: &str) -> Result<DeviceState> {
        let mut size = ANSWER;
        loop {
            let mut buffer = Aligned::new(size);
            let mut length = size as u32;
            let answer = with(interface, "read", |handle, api| {
                let start = buffer.0.as_mut_ptr().cast::<c_void>();
                // SAFETY: the handle is open; the buffer is aligned and has the length given, which is then written.
                unsafe { (api.get_configuration)(handle, start, &raw mut length) }
            });
            match answer {
                Err(error) if error.errno() == Some(ERROR_MORE_DATA as i32) && size < ANSWER_MAX => {
                    // peers may come while we ask again
                    size = (length as usize).max(size).saturating_mul(2).min(ANSWER_MAX);
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    let written = buffer.bytes().get(..length as usize).unwrap_or_default();
                    return wireguard_nt::decode(written).ok_or_else(|| Error::Unexpected {
                        operation: format!("read interface {interface}"),
                        detail: format!("{length} bytes that end too early"),
                    });
                }
            }
        }
    }
}

/// Memory aligned to 8 bytes, wiped in the end: the private key is in every answer.
struct Aligned(Vec<u64>);

impl Aligned {
    /// Zeroed; the length is rounded up to 8 bytes.
    fn new(length: usize) -> Aligned {
        Aligned(vec![0; length.div_ceil(8)])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let length = self.0.len() * 8;
        // SAFETY: the same memory, as its bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), length) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
