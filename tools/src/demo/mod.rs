//! The demo: the main job of Holdfast on one machine, with real daemons, bad lines and a real death.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`story`] | the steps, in the order in which a user sees them |
//! | [`node`] | one node: keys, configuration, its daemon, its commands |
//! | [`image`] | the ext4 image that is written and compared |
//! | [`transfer`] | bytes between files and a volume |
//! | [`report`] | what was sent, lost, repaired and resent, and how to do it by hand |
//! | [`display`] | steps and bars |
//! | [`processes`] | the daemons and their folder, cleared away however the demo ends |

pub mod display;
pub mod image;
pub mod node;
pub mod processes;
pub mod report;
pub mod story;
pub mod transfer;
