//! The running node.

pub mod event;
pub mod stun;
