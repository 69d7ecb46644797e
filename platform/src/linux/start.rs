//! No library but libc is loaded at the start, which is most of what a short command takes.

// The unwinder becomes part of the program: std would have it from libgcc_s.so.
#[cfg(target_env = "gnu")]
#[link(name = "gcc_eh", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}

/// pow(3): all that anything here wants of libm.so, by one line of tokio's scheduler.
#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
extern "C" fn pow(base: f64, exponent: f64) -> f64 {
    libm::pow(base, exponent)
}
