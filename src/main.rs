//! The `peervpn` program: parse, dispatch, exit code.

fn main() -> std::process::ExitCode {
    peervpn::cli::main(std::env::args_os())
}
