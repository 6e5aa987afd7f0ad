//! The destination of one file: its promises under every fault.

mod belongings;
mod calls;
mod crash;
mod devices;
pub mod every_call;
mod full;
mod holes;
mod hostile;
mod in_use;
mod meddling;
pub mod power;
mod recover;
mod rights;
mod soak;
mod strangers;
