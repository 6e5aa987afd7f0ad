//! Whole runs: push, pull and copies on one machine.

mod attributes;
mod backup;
mod choosing;
mod delayed;
mod delete;
mod deploy;
mod early;
mod elsewhere;
mod filters;
mod hosts;
mod interrupt;
mod kept;
mod kinds;
mod moved;
mod names;
mod paths;
mod previews;
mod racy;
mod record;
mod similar;
mod since;
mod small;
mod swaps;
mod times;
mod trees;
mod workplace;
