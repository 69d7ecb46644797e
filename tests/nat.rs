//! What `nat` measures, against real NATs and a real STUN server in the lab. Needs root, iproute2, nft and coturn.
#![cfg(target_os = "linux")]

#[path = "nat/classify.rs"]
mod classify;
#[path = "nat/gateway.rs"]
mod gateway;
#[path = "nat/gather.rs"]
mod gather;
#[path = "lab/net.rs"]
#[allow(dead_code, reason = "shared with the other lab tests")]
mod net;
#[path = "lab/service.rs"]
#[allow(dead_code, reason = "shared with the other lab tests")]
mod service;
#[path = "lab/topology.rs"]
#[allow(dead_code, reason = "shared with the other lab tests")]
mod topology;

/// Whether the lab can be built here; says what is missing.
fn lab_runs() -> bool {
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    let missing: Vec<&str> = ["ip", "nft", "turnserver", "conntrack"].into_iter().filter(|p| !found(p)).collect();
    match (root, missing.as_slice()) {
        (true, []) => true,
        (false, _) => {
            eprintln!("SKIP: root");
            false
        }
        (true, missing) => {
            eprintln!("SKIP: {}", missing.join(", "));
            false
        }
    }
}

fn found(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| std::path::Path::new(dir).join(program).exists())
}

/// Runs a future to its end in the calling thread's network namespace.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}
