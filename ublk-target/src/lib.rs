//! The shell: it owns the core and carries out what it asks, and it faces hosts and operators.

pub mod buffers;
pub mod nbd;
