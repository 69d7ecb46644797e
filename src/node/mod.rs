//! The running node.

pub mod event;
