//! The terminal: progress and messages on stderr, results on stdout, signals.

pub(crate) mod bus;
mod escape;
mod graphics;
mod limits;
pub(crate) mod report;
mod signals;
pub(crate) mod stderr;
mod table;
mod transfer;
mod units;

pub(crate) use escape::{is_unseen, visible};
pub(crate) use graphics::Protocol;
pub(crate) use limits::told;
pub(crate) use signals::{Listener, Stoppable};
pub(crate) use stderr::{Style, event, info, line, style};
pub(crate) use table::{columns, exit_code, print, print_path};
pub(crate) use transfer::Transfer;
pub(crate) use units::{human_bytes, human_count, human_time};
