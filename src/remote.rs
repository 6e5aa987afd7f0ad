//! Getting to a host: a child process as a pair of streams, and in that one connection
//! the best far side that there is: a holesync that is installed there, this program
//! brought along, or a shell.

mod bootstrap;
mod child;
mod cipher;
mod elf;
mod push;
mod running;
mod ssh;

pub use bootstrap::{
    Addresses, Agent, Bootstrapped, FarSide, Incoming, Input, Outgoing, Output, RemoteOptions, bootstrap,
    command, script,
};
pub use child::{RemoteProcess, connect};
pub use cipher::{Cipher, aes_here, remember_aes};
pub use running::{
    Finishing, Watch, again, finish_first, interrupt, interruption, is_interrupted, note_shell,
};
pub use ssh::Ssh;
