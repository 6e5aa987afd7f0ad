//! An S3 server for the tests: `holesync-s3 DIR ADDRESS KEY SECRET` serves the directories in DIR as
//! buckets to who has that key, says where it listens, and does so until it is killed.

use std::env;
use std::error::Error;
use std::io::Write;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = env::args().skip(1).collect();
    let [dir, address, key, secret] = &given[..] else {
        return Err("usage: holesync-s3 DIR ADDRESS KEY SECRET".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(dir, address, SimpleAuth::from_single(key.as_str(), secret.as_str())))
}

async fn serve(dir: &str, address: &str, auth: SimpleAuth) -> Result<(), Box<dyn Error>> {
    let files = FileSystem::new(dir).map_err(|error| format!("{dir}: {error:?}"))?;
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(auth);
    let service = service.build();
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let local = Builder::new(TokioExecutor::new());
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let connection = local.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        // Whatever becomes of one.
        tokio::spawn(async move { drop(connection.await) });
    }
}
