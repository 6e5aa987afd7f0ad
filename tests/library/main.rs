//! The library without processes, sshd or mounts: its pure parts against naive
//! models, the wire against damage, and both roles over two pipes.

mod apply;
mod compare;
mod credit;
mod leaves;
mod local;
mod open;
mod pipes;
mod plan;
mod replay;
mod roles;
mod sparse_tar;
mod stage;
mod stream;
mod support;
mod wire;
