//! The built binary, as a person meets it: exit status, stdout and stderr of every command and every bad input, held
//! against the golden files beside this one (`PEERVPN_GOLDEN=update` writes them), each with the host unchanged.
//!
//! What touches the network runs in a network namespace of its own, which needs root and iproute2; without them those
//! tests say `SKIP`.

mod bad_input;
mod doctor;
mod harness;
mod node;
mod usage;
