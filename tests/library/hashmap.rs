//! Plans and comparisons against naive models.

mod compare;
mod plan;
