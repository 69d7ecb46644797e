//! "Something about links, addresses or routes has changed": IP Helper's notifications (`netioapi.h`), as a wake-up; and
//! the filter engine's (`fwpmu.h`). What it is now, [`crate::Host`] tells.

pub use super::absent::watch::FileWatch;

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::NetworkManagement::IpHelper::*;
use windows_sys::Win32::NetworkManagement::WindowsFilteringPlatform::FWPM_FILTER_CHANGE0;
use windows_sys::Win32::Networking::WinSock::AF_UNSPEC;

use super::interface::check;
use super::ready::{Signal, Source};
use super::wfp::FilterWatch;
use crate::{Error, Result, Watch};

/// What a notification finds.
#[derive(Debug, Default)]
struct News {
    any: AtomicBool,
    signal: Arc<Signal>,
}

/// Readable when the network has changed.
#[derive(Debug)]
pub struct NetworkWatch {
    handles: Vec<HANDLE>,
    /// Dropped, and so cancelled, before the box.
    filters: Option<FilterWatch>,
    /// Behind a box of its own: the notifications have its address.
    news: Box<News>,
}

// SAFETY: the handles are only ever given to CancelMibChangeNotify2, which any thread may call.
unsafe impl Send for NetworkWatch {}
// SAFETY: as above; nothing changes through a shared reference but atomics.
unsafe impl Sync for NetworkWatch {}

/// # Safety
/// The context must be a `News` that lives until the notification is cancelled.
unsafe fn tell(context: *const c_void) {
    // SAFETY: by the caller.
    let news = unsafe { &*context.cast::<News>() };
    news.any.store(true, Ordering::Release);
    news.signal.raise();
}

unsafe extern "system" fn interface(context: *const c_void, _: *const MIB_IPINTERFACE_ROW, _: MIB_NOTIFICATION_TYPE) {
    // SAFETY: the context given at registration.
    unsafe { tell(context) }
}

unsafe extern "system" fn route(context: *const c_void, _: *const MIB_IPFORWARD_ROW2, _: MIB_NOTIFICATION_TYPE) {
    // SAFETY: the context given at registration.
    unsafe { tell(context) }
}

unsafe extern "system" fn address(
    context: *const c_void,
    _: *const MIB_UNICASTIPADDRESS_ROW,
    _: MIB_NOTIFICATION_TYPE,
) {
    // SAFETY: the context given at registration.
    unsafe { tell(context) }
}

unsafe extern "system" fn filter(context: *mut c_void, _: *const FWPM_FILTER_CHANGE0) {
    // SAFETY: the context given at registration.
    unsafe { tell(context) }
}

impl NetworkWatch {
    /// Watches this host. Needs no privilege.
    pub fn open() -> Result<Self> {
        let mut watch = NetworkWatch { handles: Vec::new(), filters: None, news: Box::default() };
        let context = (&raw const *watch.news).cast::<c_void>();
        let mut register = |answer: u32, handle: HANDLE| {
            check(|| "watch the network's configuration".to_owned(), answer)?;
            watch.handles.push(handle);
            Ok::<(), Error>(())
        };
        let mut handle: HANDLE = null_mut();
        // SAFETY: each callback takes the context given, which lives until `drop` has cancelled it.
        let answer = unsafe { NotifyIpInterfaceChange(AF_UNSPEC, Some(interface), context, false, &raw mut handle) };
        register(answer, handle)?;
        // SAFETY: as above.
        let answer = unsafe { NotifyRouteChange2(AF_UNSPEC, Some(route), context, false, &raw mut handle) };
        register(answer, handle)?;
        // SAFETY: as above.
        let answer = unsafe { NotifyUnicastIpAddressChange(AF_UNSPEC, Some(address), context, false, &raw mut handle) };
        register(answer, handle)?;
        Ok(watch)
    }

    /// The same for the filters. Needs an administrator.
    pub fn open_firewall() -> Result<Self> {
        let mut watch = NetworkWatch { handles: Vec::new(), filters: None, news: Box::default() };
        let context = (&raw const *watch.news).cast::<c_void>();
        watch.filters = Some(FilterWatch::open(Some(filter), context)?);
        Ok(watch)
    }
}

impl Watch for NetworkWatch {
    fn drain(&self) -> bool {
        self.news.any.swap(false, Ordering::AcqRel)
    }
}

impl Source for NetworkWatch {
    fn signal(&self) -> &Arc<Signal> {
        &self.news.signal
    }
}

impl Drop for NetworkWatch {
    fn drop(&mut self) {
        for handle in &self.handles {
            // SAFETY: registered by us, cancelled once. It returns when no callback runs any more.
            unsafe { CancelMibChangeNotify2(*handle) };
        }
    }
}
