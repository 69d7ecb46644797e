//! Installing ourselves as a service, being run by the service manager, stopped and removed: Windows, or Wine.

#[cfg(not(windows))]
fn main() {
    println!("SKIP: the service manager of Windows");
}

#[cfg(windows)]
fn main() {
    windows::main();
}

#[cfg(windows)]
mod windows {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use peervpn_platform::Error;
    use peervpn_platform::os::service;
    use peervpn_platform::os::signals::StopSignals;
    use peervpn_platform::types::{Installed, Service, ServiceState};

    /// What no shell would leave alone.
    const ODD: [&str; 5] = ["two words", r"C:\dir\", r#"say "no\""#, "", "日本 ^50%"];
    /// For a loaded machine.
    const LIMIT: Duration = Duration::from_secs(120);

    pub fn main() {
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let text: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        match text.as_slice() {
            ["serve", log, odd @ ..] => {
                let said = format!("{odd:?}");
                service::run(Path::new(log), move || serve(&said)).unwrap();
            }
            ["fail", log] => service::run(Path::new(log), || 3).unwrap(),
            // cargo's arguments for tests
            _ => test(),
        }
    }

    /// The work of the service: until it is stopped.
    fn serve(said: &str) -> u8 {
        println!("started with {said}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { StopSignals::install().unwrap().recv().await });
        println!("stopped");
        0
    }

    fn status() -> Service {
        service::status().unwrap().expect("it is installed")
    }

    #[track_caller]
    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < LIMIT, "{what}: {:?}", service::status());
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("ok: {what}");
    }

    fn test() {
        let dir: PathBuf = std::env::temp_dir().join(format!("peervpn service {}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("service.log");
        let read = || std::fs::read_to_string(&log).unwrap_or_default();
        let with = |first: &[&str], rest: &[&str]| -> Vec<OsString> {
            let path = log.to_str().unwrap();
            first.iter().chain(&[path]).chain(rest).map(OsString::from).collect()
        };
        assert!(!service::uninstall().unwrap(), "a service of that name is there");
        assert_eq!(service::status().unwrap(), None);

        // the service manager would put something else there
        assert!(matches!(service::install(&with(&["serve"], &["a%PATH%"])), Err(Error::Unsupported { .. })));

        let command = with(&["serve"], &ODD);
        assert_eq!(service::install(&command).unwrap(), Installed::Made);
        eventually("it runs, and says so in its log", || {
            status().state == ServiceState::Running && read().contains("started with")
        });
        assert_eq!(status().arguments, command, "as the service manager has them");
        assert!(read().contains(&format!("started with {ODD:?}")), "as the service got them: {}", read());
        assert!(status().pid.is_some_and(|pid| pid != std::process::id()));
        assert_eq!(service::install(&command).unwrap(), Installed::Same);
        assert_eq!(service::install(&with(&["serve"], &[])).unwrap(), Installed::Other(command));
        assert!(service::uninstall().unwrap());
        assert!(read().ends_with("stopped\r\n") || read().ends_with("stopped\n"), "it ended by itself: {}", read());
        assert_eq!(service::status().unwrap(), None, "it is gone");
        assert!(!service::uninstall().unwrap(), "twice is no error");

        assert_eq!(service::install(&with(&["fail"], &[])).unwrap(), Installed::Made);
        eventually("a failure's exit status is known", || status().exit == Some(3));
        assert!(std::fs::exists(log.with_extension("old")).unwrap(), "the log of the last time is kept");
        assert!(service::uninstall().unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
