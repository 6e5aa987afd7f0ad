//! The library without processes, sshd or mounts: its pure parts against naive
//! models, the wire against damage, and both roles over two pipes.

mod apply;
mod hashmap;
mod protocol;
mod roles;
mod shell;
mod store;
mod stream;
mod support;
mod sync;
