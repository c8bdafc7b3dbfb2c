//! A consistency group on one node: the object that a shell drives.
//!
//! Call order: `handle_*` with an event, then [`Group::poll_output`] until `None`, then [`Group::poll_timeout`] for
//! the time of the next [`Group::handle_timeout`].
