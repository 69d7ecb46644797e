//! A node under the service control manager: `winsvc.h`.

use std::ffi::{OsString, c_void};
use std::fs::OpenOptions;
use std::io;
use std::os::windows::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::windows::fs::OpenOptionsExt as _;
use std::os::windows::io::IntoRawHandle as _;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    ERROR_CALL_NOT_IMPLEMENTED, ERROR_FAILED_SERVICE_CONTROLLER_CONNECT, ERROR_SERVICE_ALREADY_RUNNING,
    ERROR_SERVICE_CANNOT_ACCEPT_CTRL, ERROR_SERVICE_DOES_NOT_EXIST, ERROR_SERVICE_MARKED_FOR_DELETE,
    ERROR_SERVICE_NEVER_STARTED, ERROR_SERVICE_NOT_ACTIVE, ERROR_SERVICE_SPECIFIC_ERROR, NO_ERROR,
};
use windows_sys::Win32::Storage::FileSystem::{DELETE, FILE_SHARE_READ};
use windows_sys::Win32::System::Console::{STD_ERROR_HANDLE, STD_OUTPUT_HANDLE, SetStdHandle};
use windows_sys::Win32::System::Services::*;
use windows_sys::core::PWSTR;

use super::security::{self, Standing};
use super::signals;
use super::text::{units, wide};
use crate::types::{Installed, Service, ServiceState};
use crate::{Error, Result, argv, files};

/// The service's name.
const NAME: &str = "PeerVPN";
/// How long a node may need to put the host back.
const STOPPING: Duration = Duration::from_secs(30);
/// How long after a failure it is started again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long others may hold a removed service open.
const GOING: Duration = Duration::from_secs(5);
/// How often a stopping service is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// What the service does, its exit status the result.
type Work = Box<dyn FnOnce() -> u8 + Send>;

static WORK: Mutex<Option<Work>> = Mutex::new(None);

/// Where the service manager is told how we stand, as a number, for its control handler; 0 when it was told the end.
static STATUS: Mutex<usize> = Mutex::new(0);

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

/// The answer of a call that says 0 for failure.
fn check(operation: impl FnOnce() -> String, answer: i32) -> Result<()> {
    if answer == 0 { Err(last(operation())) } else { Ok(()) }
}

/// Whether that is why it failed.
fn failed_for(error: &Error, code: u32) -> bool {
    error.errno() == Some(code as i32)
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|source| Error::system("find our own program file", source))
}

/// The service is the system's own: whoever may replace its program may do everything.
fn check_program() -> Result<()> {
    let program = program()?;
    let places = [program.as_path(), files::parent(&program)];
    let all = |standing: fn(&Path) -> io::Result<Standing>| -> Result<bool> {
        let ours = |path: &Path| standing(path).map(|standing| standing == Standing::Ours);
        let looked: io::Result<Vec<bool>> = places.into_iter().map(ours).collect();
        let looked = looked.map_err(|source| Error::system(format!("look at {}", program.display()), source))?;
        Ok(!looked.contains(&false))
    };
    if !all(security::standing)? {
        return Err(Error::Unsupported {
            what: "a service whose program other users may replace",
            instead: "move the program with its wireguard.dll below %ProgramFiles%, and install the service from there",
        });
    }
    if !all(security::standing_of_system)? {
        tracing::warn!(
            "any program that you start may replace {}, which the system runs from now on: better move it below \
             %ProgramFiles%, and install the service from there",
            program.display()
        );
    }
    Ok(())
}

/// The command line of this program with these arguments.
fn line(arguments: &[OsString]) -> Result<Vec<u16>> {
    let program: Vec<u16> = program()?.as_os_str().encode_wide().collect();
    let arguments: Vec<Vec<u16>> = arguments.iter().map(|argument| argument.encode_wide().collect()).collect();
    // the service manager replaces variables in what it starts, and knows no way around that
    let percent = |text: &[u16]| text.iter().filter(|unit| **unit == u16::from(b'%')).count();
    if arguments.iter().chain([&program]).any(|text| percent(text) > 1) {
        return Err(Error::Unsupported {
            what: "a service with %…% in its command",
            instead: "choose places without percent signs",
        });
    }
    Ok(argv::join(&program, arguments.iter().map(Vec::as_slice)))
}

/// Installs the service, to be started with the system from now on, and starts it: this program with these arguments.
pub fn install(arguments: &[OsString]) -> Result<Installed> {
    let line = line(arguments)?;
    let manager = manager(SC_MANAGER_CREATE_SERVICE)?;
    if let Some(service) = open(&manager, SERVICE_QUERY_CONFIG | SERVICE_QUERY_STATUS | SERVICE_START)? {
        let found = command(&service)?;
        if found != line {
            return Ok(Installed::Other(arguments_of(&found)));
        }
        return start(&service).map(|()| Installed::Same);
    }
    check_program()?;
    let (name, display) = (wide(NAME), wide("PeerVPN"));
    let line: Vec<u16> = line.into_iter().chain([0]).collect();
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
    describe(&service);
    start(&service).map(|()| Installed::Made)
}

/// What the service manager shows of it, and that it is started again when it fails: it may come before the network does.
/// Without these it works, too.
fn describe(service: &Handle) {
    let mut text = wide("Sends this machine's traffic through an exit (peervpn service uninstall removes it)");
    let description = SERVICE_DESCRIPTIONW { lpDescription: text.as_mut_ptr() };
    let mut again = SC_ACTION { Type: SC_ACTION_RESTART, Delay: AGAIN.as_millis() as u32 };
    // the last action is repeated
    let failures = SERVICE_FAILURE_ACTIONSW { cActions: 1, lpsaActions: &raw mut again, ..Default::default() };
    // an exit status other than 0 is a failure, too
    let any = SERVICE_FAILURE_ACTIONS_FLAG { fFailureActionsOnNonCrashFailures: 1 };
    let settings = [
        (SERVICE_CONFIG_DESCRIPTION, (&raw const description).cast::<c_void>()),
        (SERVICE_CONFIG_FAILURE_ACTIONS, (&raw const failures).cast()),
        (SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, (&raw const any).cast()),
    ];
    for (level, setting) in settings {
        // SAFETY: the handle is open; the setting is what the level asks for, and lives through the call with all that it
        // points to.
        if unsafe { ChangeServiceConfig2W(service.0, level, setting) } == 0 {
            tracing::debug!(level, error = %io::Error::last_os_error(), "the service lacks a setting");
        }
    }
}

/// Starts it. One that runs already is no error.
fn start(service: &Handle) -> Result<()> {
    // SAFETY: the handle is open; there are no further arguments.
    let answer = unsafe { StartServiceW(service.0, 0, null()) };
    match check(|| format!("start the service {NAME}, which is installed"), answer) {
        Err(error) if failed_for(&error, ERROR_SERVICE_ALREADY_RUNNING) => Ok(()),
        other => other,
    }
}

/// Its command line.
fn command(service: &Handle) -> Result<Vec<u16>> {
    let operation = || format!("read the settings of the service {NAME}");
    let mut length = 0;
    // SAFETY: the handle is open; without a buffer only the length is written.
    unsafe { QueryServiceConfigW(service.0, null_mut(), 0, &raw mut length) };
    // aligned for the structure, which is followed by its texts
    let mut buffer = vec![0_u64; (length as usize).div_ceil(8).max(size_of::<QUERY_SERVICE_CONFIGW>() / 8 + 1)];
    let size = (buffer.len() * 8) as u32;
    let start: *mut QUERY_SERVICE_CONFIGW = buffer.as_mut_ptr().cast();
    // SAFETY: the handle is open; the buffer has the size given.
    check(operation, unsafe { QueryServiceConfigW(service.0, start, size, &raw mut length) })?;
    // SAFETY: the call has written the structure, and the texts that it points to, into the buffer.
    Ok(unsafe { units((*start).lpBinaryPathName) })
}

fn arguments_of(line: &[u16]) -> Vec<OsString> {
    argv::split(line).iter().skip(1).map(|argument| OsString::from_wide(argument)).collect()
}

fn query(service: &Handle) -> Result<SERVICE_STATUS_PROCESS> {
    let mut status = SERVICE_STATUS_PROCESS::default();
    let (start, mut length) = ((&raw mut status).cast(), 0);
    let size = size_of::<SERVICE_STATUS_PROCESS>() as u32;
    // SAFETY: the handle is open; the structure is the one that this level fills in, and has the size given.
    let answer = unsafe { QueryServiceStatusEx(service.0, SC_STATUS_PROCESS_INFO, start, size, &raw mut length) };
    check(|| format!("look at the service {NAME}"), answer).map(|()| status)
}

/// How the service stands; `None` if it is not installed.
pub fn status() -> Result<Option<Service>> {
    let manager = manager(SC_MANAGER_CONNECT)?;
    let Some(service) = open(&manager, SERVICE_QUERY_CONFIG | SERVICE_QUERY_STATUS)? else { return Ok(None) };
    let status = query(&service)?;
    let state = match status.dwCurrentState {
        SERVICE_STOPPED => ServiceState::Stopped,
        SERVICE_STOP_PENDING => ServiceState::Stopping,
        SERVICE_START_PENDING => ServiceState::Starting,
        _ => ServiceState::Running,
    };
    let exit = match status.dwWin32ExitCode {
        ERROR_SERVICE_NEVER_STARTED => None,
        ERROR_SERVICE_SPECIFIC_ERROR => Some(status.dwServiceSpecificExitCode),
        code => Some(code),
    };
    Ok(Some(Service {
        state,
        pid: (status.dwProcessId != 0).then_some(status.dwProcessId),
        exit: exit.filter(|_| state == ServiceState::Stopped),
        arguments: arguments_of(&command(&service)?),
    }))
}

/// Stops the service, waits until it has put the host back, removes it, and waits some seconds until it is gone. `false` if
/// there is none.
pub fn uninstall() -> Result<bool> {
    let manager = manager(SC_MANAGER_CONNECT)?;
    let Some(service) = open(&manager, SERVICE_STOP | SERVICE_QUERY_STATUS | DELETE)? else { return Ok(false) };
    let started = Instant::now();
    while query(&service)?.dwCurrentState != SERVICE_STOPPED {
        let mut status = SERVICE_STATUS::default();
        // SAFETY: the handle is open; the status is written.
        let answer = unsafe { ControlService(service.0, SERVICE_CONTROL_STOP, &raw mut status) };
        match check(|| format!("stop the service {NAME}"), answer) {
            // it is starting, stopping, or has just stopped
            Err(error)
                if [ERROR_SERVICE_NOT_ACTIVE, ERROR_SERVICE_CANNOT_ACCEPT_CTRL]
                    .iter()
                    .any(|code| failed_for(&error, *code)) => {}
            other => other?,
        }
        if started.elapsed() > STOPPING {
            return Err(Error::system(format!("stop the service {NAME}"), io::Error::from(io::ErrorKind::TimedOut)));
        }
        std::thread::sleep(PAUSE);
    }
    // SAFETY: the handle is open.
    match check(|| format!("remove the service {NAME}"), unsafe { DeleteService(service.0) }) {
        Err(error) if failed_for(&error, ERROR_SERVICE_MARKED_FOR_DELETE) => {}
        other => other?,
    }
    drop(service);
    // it goes with its last handle, such as that of its own process, which is ending; till then none can be installed
    let removed = Instant::now();
    while matches!(open(&manager, SERVICE_QUERY_STATUS), Ok(Some(_))) {
        if removed.elapsed() > GOING {
            tracing::warn!(
                "another program has the service {NAME} open: close what shows services, to install it again"
            );
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}

/// Does `work` as the service: only the service manager starts a process in which this succeeds. What it prints goes to
/// `log`, which is made anew; that of the last time is kept beside it, as `.old`.
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
    // there may be none
    let _ = std::fs::rename(log, log.with_extension("old"));
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
    let status = || STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    *status() = handle as usize;
    report(handle, SERVICE_RUNNING, 0);
    let work = WORK.lock().unwrap_or_else(PoisonError::into_inner).take();
    let exit = work.map_or(0, |work| work());
    let mut status = status();
    *status = 0;
    report(handle, SERVICE_STOPPED, exit);
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
        dwWaitHint: if state == SERVICE_STOP_PENDING { STOPPING.as_millis() as u32 } else { 0 },
    };
    // SAFETY: the handle is the one that the manager gave; the status lives through the call.
    unsafe { SetServiceStatus(handle, &raw const status) };
}

unsafe extern "system" fn control(control: u32, _event: u32, _data: *mut c_void, _context: *mut c_void) -> u32 {
    match control {
        SERVICE_CONTROL_STOP | SERVICE_CONTROL_SHUTDOWN => {
            let status = STATUS.lock().unwrap_or_else(PoisonError::into_inner);
            if *status != 0 {
                report(*status as SERVICE_STATUS_HANDLE, SERVICE_STOP_PENDING, 0);
            }
            signals::stop();
            NO_ERROR
        }
        SERVICE_CONTROL_INTERROGATE => NO_ERROR,
        _ => ERROR_CALL_NOT_IMPLEMENTED,
    }
}
