//! `wireguard.dll`, WireGuardNT's own library: loaded from beside our program and from nowhere else, and only if it is the
//! published file, by its SHA-256 (`vendor/wireguard-nt/SHA256SUMS`).

use std::ffi::{CStr, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::mem::transmute;
use std::os::windows::fs::OpenOptionsExt as _;
use std::os::windows::io::AsRawHandle as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};
use windows_sys::Win32::Foundation::{ERROR_BAD_EXE_FORMAT, ERROR_MOD_NOT_FOUND, HMODULE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_OPEN_REPARSE_POINT, FILE_SHARE_READ, GetFinalPathNameByHandleW, VOLUME_NAME_DOS,
};
use windows_sys::Win32::System::LibraryLoader::{GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW};
use windows_sys::core::{GUID, PCWSTR};

use crate::{Error, Result};

/// Its name beside our program.
pub(super) const NAME: &str = "wireguard.dll";
/// What the published one hashes to; `None` where none is published for this processor.
const PUBLISHED: Option<&str> = if cfg!(target_arch = "x86_64") {
    Some("d2ad6ce25634776f5067fd9d5750a5e3d2add1adde98eb1f56a2df194d0e9cbb")
} else if cfg!(target_arch = "aarch64") {
    Some("19126ecdb019c0cdb0fe38f9bb450b79401e1a07b7346be9859bbabf8ca57f42")
} else {
    None
};
/// Longer than any version of it, bytes.
const LONGEST: u64 = 16 << 20;
const INSTEAD: &str = "unpack the bundle again: wireguard.dll belongs beside peervpn.exe, unchanged (vendor/wireguard-nt \
                       in the source)";

/// A function of a library, of whatever type.
type Found = unsafe extern "system" fn() -> isize;

/// `WIREGUARD_ADAPTER_HANDLE`.
pub(super) type Handle = *mut c_void;

type Create = unsafe extern "system" fn(PCWSTR, PCWSTR, *const GUID) -> Handle;
type Close = unsafe extern "system" fn(Handle);
type SetState = unsafe extern "system" fn(Handle, i32) -> i32;
type SetConfiguration = unsafe extern "system" fn(Handle, *const c_void, u32) -> i32;
type GetConfiguration = unsafe extern "system" fn(Handle, *mut c_void, *mut u32) -> i32;

/// The functions of `wireguard.h` that we call.
pub(super) struct Api {
    pub(super) create: Create,
    pub(super) close: Close,
    pub(super) set_state: SetState,
    pub(super) set_configuration: SetConfiguration,
    pub(super) get_configuration: GetConfiguration,
}

/// The library, loaded once; what it came to stays so for as long as we run.
pub(super) fn api() -> Result<&'static Api> {
    static API: OnceLock<std::result::Result<Api, Fault>> = OnceLock::new();
    API.get_or_init(load).as_ref().map_err(Fault::error)
}

/// Why it was not loaded.
struct Fault {
    path: PathBuf,
    kind: io::ErrorKind,
    why: String,
}

impl Fault {
    fn error(&self) -> Error {
        let why = io::Error::new(self.kind, format!("{}; {INSTEAD}", self.why));
        Error::system(format!("load {}", self.path.display()), why)
    }
}

fn load() -> std::result::Result<Api, Fault> {
    let path = match std::env::current_exe() {
        Ok(program) => program.with_file_name(NAME),
        Err(error) => return Err(Fault { path: NAME.into(), kind: error.kind(), why: error.to_string() }),
    };
    load_from(&path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "it is not there".to_owned(),
            _ => error.to_string(),
        };
        Fault { path, kind: error.kind(), why }
    })
}

fn load_from(path: &Path) -> io::Result<Api> {
    let published = PUBLISHED
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "none is published for this kind of processor"))?;
    // as long as this is open nobody writes, renames or replaces the file: what is hashed is what is loaded
    let file = OpenOptions::new()
        .read(true)
        .share_mode(FILE_SHARE_READ)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)?;
    check(&file, published)?;
    let module = map(&file)?;
    // never unloaded: the driver calls back into it
    Api::of(module)
}

fn check(file: &File, published: &str) -> io::Result<()> {
    let odd = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if !file.metadata()?.is_file() {
        return Err(odd("it is not a regular file".to_owned()));
    }
    let (mut hash, mut chunk, mut reader) = (Sha256::new(), vec![0; 64 << 10], file.take(LONGEST + 1));
    loop {
        match reader.read(&mut chunk)? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == published {
        return Ok(());
    }
    Err(odd(format!("it is not the published file (SHA-256 {found}, expected {published})")))
}

/// Loads the very file that is open; what it needs comes from the system's own directory.
fn map(file: &File) -> io::Result<HMODULE> {
    // without its links, and whatever stood in their place before
    let mut path = vec![0_u16; 32 << 10];
    // SAFETY: the handle is open; the buffer has the length given.
    let length = unsafe {
        GetFinalPathNameByHandleW(file.as_raw_handle(), path.as_mut_ptr(), path.len() as u32, VOLUME_NAME_DOS)
    } as usize;
    if length == 0 || length >= path.len() {
        return Err(io::Error::last_os_error());
    }
    path.truncate(length + 1);
    // SAFETY: the path ends with zero; the reserved handle is null.
    let module = unsafe { LoadLibraryExW(path.as_ptr(), std::ptr::null_mut(), LOAD_LIBRARY_SEARCH_SYSTEM32) };
    if !module.is_null() {
        return Ok(module);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error().map(|code| code as u32) {
        Some(ERROR_BAD_EXE_FORMAT) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is for another processor")),
        Some(ERROR_MOD_NOT_FOUND) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this Windows lacks a library that it needs"))
        }
        _ => Err(error),
    }
}

impl Api {
    fn of(module: HMODULE) -> io::Result<Api> {
        let find = |name: &CStr| {
            // SAFETY: the module is loaded for good; the name ends with zero.
            let found = unsafe { GetProcAddress(module, name.as_ptr().cast()) };
            found.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("it has no function {}", name.to_string_lossy()))
            })
        };
        // SAFETY: each function has the type that wireguard.h gives it; the file is the one that this header is of.
        Ok(unsafe {
            Api {
                create: transmute::<Found, Create>(find(c"WireGuardCreateAdapter")?),
                close: transmute::<Found, Close>(find(c"WireGuardCloseAdapter")?),
                set_state: transmute::<Found, SetState>(find(c"WireGuardSetAdapterState")?),
                set_configuration: transmute::<Found, SetConfiguration>(find(c"WireGuardSetConfiguration")?),
                get_configuration: transmute::<Found, GetConfiguration>(find(c"WireGuardGetConfiguration")?),
            }
        })
    }
}
