//! The terminal: progress and messages on stderr, results on stdout, signals.

pub(crate) mod bus;
mod colour;
pub(crate) mod desktop;
mod graphics;
mod limits;
pub(crate) mod report;
mod signals;
pub(crate) mod stderr;
mod table;
pub(crate) mod terminal;
mod transfer;
mod units;
mod wrap;

pub(crate) use colour::Colours;
pub(crate) use graphics::{Protocol, Space};
pub(crate) use limits::with_advice;
pub(crate) use signals::{Fetching, Listener, Stoppable, is_ignored};
pub(crate) use stderr::{Style, confirm, event, info, style};
pub(crate) use table::{columns, columns_within, exit_code};
pub(crate) use terminal::{print, print_json, print_path, print_raw};
pub(crate) use transfer::Transfer;
pub(crate) use units::{human_bytes, human_count, human_short_time, human_time};
