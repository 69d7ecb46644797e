//! A node under the service control manager: `winsvc.h`.

use std::ffi::{OsStr, OsString, c_void};
use std::fs::OpenOptions;
use std::io;
use std::os::windows::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::windows::fs::OpenOptionsExt as _;
use std::os::windows::io::IntoRawHandle as _;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    ERROR_CALL_NOT_IMPLEMENTED, ERROR_FAILED_SERVICE_CONTROLLER_CONNECT, ERROR_SERVICE_DOES_NOT_EXIST,
    ERROR_SERVICE_NOT_ACTIVE, ERROR_SERVICE_SPECIFIC_ERROR, NO_ERROR,
};
use windows_sys::Win32::Storage::FileSystem::{DELETE, FILE_SHARE_READ};
use windows_sys::Win32::System::Console::{STD_ERROR_HANDLE, STD_OUTPUT_HANDLE, SetStdHandle};
use windows_sys::Win32::System::Services::*;
use windows_sys::core::PWSTR;

use super::signals;
use super::text::wide;
use crate::{Error, Result};

/// The service's name.
const NAME: &str = "PeerVPN";
/// How long a node may need to put the host back.
const STOPPING: Duration = Duration::from_secs(30);
/// How often a stopping service is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// What the service does, its exit status the result.
type Work = Box<dyn FnOnce() -> u8 + Send>;

static WORK: Mutex<Option<Work>> = Mutex::new(None);

fn last(operation: impl Into<String>) -> Error {
    Error::system(operation, io::Error::last_os_error())
}

/// A handle of the service control manager.
struct Handle(SC_HANDLE);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { CloseServiceHandle(self.0) };
    }
}

fn manager(access: u32) -> Result<Handle> {
    // SAFETY: no machine and no database mean this one and the active one.
    let handle = unsafe { OpenSCManagerW(null(), null(), access) };
    if handle.is_null() { Err(last("ask the service manager")) } else { Ok(Handle(handle)) }
}

/// `None` if it is not installed.
fn open(manager: &Handle, access: u32) -> Result<Option<Handle>> {
    // SAFETY: the manager's handle is open; the name ends with zero.
    let handle = unsafe { OpenServiceW(manager.0, wide(NAME).as_ptr(), access) };
    if !handle.is_null() {
        return Ok(Some(Handle(handle)));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(ERROR_SERVICE_DOES_NOT_EXIST as i32) {
        return Ok(None);
    }
    Err(Error::system(format!("open the service {NAME}"), error))
}

/// One argument as CommandLineToArgvW takes it apart again.
fn quoted(argument: &OsStr) -> OsString {
    let (backslash, quote) = (u16::from(b'\\'), u16::from(b'"'));
    let (mut line, mut backslashes) = (vec![quote], 0);
    for unit in argument.encode_wide() {
        if unit == quote {
            // each of those before it, and it itself, needs one more
            line.extend(std::iter::repeat_n(backslash, backslashes + 1));
        }
        backslashes = if unit == backslash { backslashes + 1 } else { 0 };
        line.push(unit);
    }
    line.extend(std::iter::repeat_n(backslash, backslashes));
    line.push(quote);
    OsString::from_wide(&line)
}

/// Installs the service, to be started with the system from now on, and starts it: this program with these arguments. One
/// that is there already is an error.
pub fn install(arguments: &[OsString]) -> Result<()> {
    let program = std::env::current_exe().map_err(|source| Error::system("find our own program file", source))?;
    let mut line = quoted(program.as_os_str());
    for argument in arguments {
        line.push(" ");
        line.push(quoted(argument));
    }
    let manager = manager(SC_MANAGER_CREATE_SERVICE)?;
    let (name, line, display) = (wide(NAME), wide(line), wide("PeerVPN"));
    // DNS and the filter engine are there before us
    let dependencies: Vec<u16> = [wide("Dnscache"), wide("BFE"), vec![0]].concat();
    // SAFETY: the manager's handle is open; every text ends with zero, the list with two; null is the default elsewhere,
    // and LocalSystem for the account.
    let service = unsafe {
        CreateServiceW(
            manager.0,
            name.as_ptr(),
            display.as_ptr(),
            SERVICE_START | SERVICE_CHANGE_CONFIG,
            SERVICE_WIN32_OWN_PROCESS,
            SERVICE_AUTO_START,
            SERVICE_ERROR_NORMAL,
            line.as_ptr(),
            null(),
            null_mut(),
            dependencies.as_ptr(),
            null(),
            null(),
        )
    };
    if service.is_null() {
        return Err(last(format!("install the service {NAME}")));
    }
    let service = Handle(service);
    let mut text = wide("Sends this machine's traffic through an exit (peervpn service uninstall removes it)");
    let description = SERVICE_DESCRIPTIONW { lpDescription: text.as_mut_ptr() };
    // SAFETY: the handle is open; the description and its text live through the call.
    if unsafe { ChangeServiceConfig2W(service.0, SERVICE_CONFIG_DESCRIPTION, (&raw const description).cast()) } == 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the service has no description");
    }
    // SAFETY: the handle is open; there are no further arguments.
    if unsafe { StartServiceW(service.0, 0, null()) } == 0 {
        return Err(last(format!("start the service {NAME}, which is installed")));
    }
    Ok(())
}

/// Stops the service, waits until it has put the host back, and removes it. `false` if there is none.
pub fn uninstall() -> Result<bool> {
    let manager = manager(SC_MANAGER_CONNECT)?;
    let Some(service) = open(&manager, SERVICE_STOP | SERVICE_QUERY_STATUS | DELETE)? else { return Ok(false) };
    let mut status = SERVICE_STATUS::default();
    // SAFETY: the handle is open; the status is written.
    if unsafe { ControlService(service.0, SERVICE_CONTROL_STOP, &raw mut status) } == 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(ERROR_SERVICE_NOT_ACTIVE as i32) {
            return Err(Error::system(format!("stop the service {NAME}"), error));
        }
    }
    let started = Instant::now();
    loop {
        // SAFETY: as above.
        if unsafe { QueryServiceStatus(service.0, &raw mut status) } == 0 {
            return Err(last(format!("look at the service {NAME}")));
        }
        if status.dwCurrentState == SERVICE_STOPPED {
            break;
        }
        if started.elapsed() > STOPPING {
            return Err(Error::system(format!("stop the service {NAME}"), io::Error::from(io::ErrorKind::TimedOut)));
        }
        std::thread::sleep(PAUSE);
    }
    // SAFETY: the handle is open.
    if unsafe { DeleteService(service.0) } == 0 {
        return Err(last(format!("remove the service {NAME}")));
    }
    Ok(true)
}

/// Does `work` as the service: only the service manager starts a process in which this succeeds. What it prints goes to
/// `log`, which is made anew.
pub fn run(log: &Path, work: impl FnOnce() -> u8 + Send + 'static) -> Result<()> {
    redirect(log).map_err(|source| Error::system(format!("write {}", log.display()), source))?;
    *WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(work));
    let mut name = wide(NAME);
    let entry = SERVICE_TABLE_ENTRYW { lpServiceName: name.as_mut_ptr(), lpServiceProc: Some(service_main) };
    let table = [entry, SERVICE_TABLE_ENTRYW { lpServiceName: null_mut(), lpServiceProc: None }];
    // SAFETY: the table ends with an empty entry, and lives until the service has stopped, which is when this returns.
    if unsafe { StartServiceCtrlDispatcherW(table.as_ptr()) } != 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(ERROR_FAILED_SERVICE_CONTROLLER_CONNECT as i32) {
        return Err(Error::Unsupported {
            what: "running as a service without the service manager",
            instead: "peervpn service install has it started by the service manager",
        });
    }
    Err(Error::system("run as a service", error))
}

/// A service has no console.
fn redirect(log: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).share_mode(FILE_SHARE_READ).open(log)?;
    for (which, file) in [(STD_OUTPUT_HANDLE, file.try_clone()?), (STD_ERROR_HANDLE, file)] {
        // SAFETY: an open handle that stays open for as long as we run.
        if unsafe { SetStdHandle(which, file.into_raw_handle()) } == 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

unsafe extern "system" fn service_main(_count: u32, _arguments: *mut PWSTR) {
    let name = wide(NAME);
    // SAFETY: the name ends with zero; the handler needs no context.
    let handle = unsafe { RegisterServiceCtrlHandlerExW(name.as_ptr(), Some(control), null()) };
    if handle.is_null() {
        return;
    }
    report(handle, SERVICE_RUNNING, 0);
    let work = WORK.lock().unwrap_or_else(PoisonError::into_inner).take();
    let status = work.map_or(0, |work| work());
    report(handle, SERVICE_STOPPED, status);
}

fn report(handle: SERVICE_STATUS_HANDLE, state: SERVICE_STATUS_CURRENT_STATE, exit: u8) {
    let accepted = if state == SERVICE_RUNNING { SERVICE_ACCEPT_STOP | SERVICE_ACCEPT_SHUTDOWN } else { 0 };
    let status = SERVICE_STATUS {
        dwServiceType: SERVICE_WIN32_OWN_PROCESS,
        dwCurrentState: state,
        dwControlsAccepted: accepted,
        dwWin32ExitCode: if exit == 0 { NO_ERROR } else { ERROR_SERVICE_SPECIFIC_ERROR },
        dwServiceSpecificExitCode: exit.into(),
        dwCheckPoint: 0,
        dwWaitHint: 0,
    };
    // SAFETY: the handle is the one that the manager gave; the status lives through the call.
    unsafe { SetServiceStatus(handle, &raw const status) };
}

unsafe extern "system" fn control(control: u32, _event: u32, _data: *mut c_void, _context: *mut c_void) -> u32 {
    match control {
        SERVICE_CONTROL_STOP | SERVICE_CONTROL_SHUTDOWN => {
            signals::stop();
            NO_ERROR
        }
        SERVICE_CONTROL_INTERROGATE => NO_ERROR,
        _ => ERROR_CALL_NOT_IMPLEMENTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_being_one_line() {
        let line = |text: &str| quoted(OsStr::new(text)).into_string().unwrap();
        assert_eq!(line(r"C:\Program Files\peervpn.exe"), r#""C:\Program Files\peervpn.exe""#);
        assert_eq!(line(r"C:\dir\"), r#""C:\dir\\""#);
        assert_eq!(line(r#"a"b\"c"#), r#""a\"b\\\"c""#);
    }
}
