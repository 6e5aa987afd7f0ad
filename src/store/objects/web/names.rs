//! Addresses of servers by name. A static program has no name service but files and DNS of its own:
//! where nsswitch.conf(5) names another one, getent(1) is asked, which asks that.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::connection::{Line, elsewhere};
use super::{address, proxy};
use crate::error::lock;
use crate::source;

/// Addresses that are tried, of those of one name.
const MOST: usize = 8;
/// The longest that a name service is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Names {
    line: Arc<Line>,
    /// What was found.
    known: Mutex<HashMap<(String, u16), Vec<SocketAddr>>>,
}

impl Names {
    /// For connections that this is the line of.
    pub fn new(line: Arc<Line>) -> Names {
        Names { line, known: Mutex::default() }
    }

    fn find(&self, uri: &Uri, within: Duration) -> io::Result<Vec<SocketAddr>> {
        let host = uri.host().unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if address::is_secure(uri) { 443 } else { 80 });
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let key = (bare.to_string(), port);
        if let Some(found) = lock(&self.known).get(&key) {
            return Ok(found.clone());
        }
        let name = bare.to_string();
        let found = elsewhere(move || look_up(&name, port), within, &self.line.stop)?;
        lock(&self.known).insert(key, found.clone());
        Ok(found)
    }
}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let through = self.line.proxy_for(uri).map(proxy::address);
        let found = match self.find(through.as_ref().unwrap_or(uri), PATIENCE.min(*timeout.after)) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Error::Timeout(timeout.reason));
            }
            Err(error) if self.line.stop.is_set() => return Err(Error::Io(error)),
            Err(_) => return Err(Error::HostNotFound),
        };
        let mut addresses = self.empty();
        found.into_iter().take(MOST).for_each(|address| addresses.push(address));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let switch = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    if source::has_another_service(&switch, "hosts", &["files", "dns"]) {
        let mut command = Command::new("getent");
        command.args(["ahosts", "--", name]).stdin(Stdio::null()).stderr(Stdio::null());
        // Without that program there are files and DNS.
        if let Ok(output) = command.output() {
            return Ok(addresses(&String::from_utf8_lossy(&output.stdout), port));
        }
    }
    Ok((name, port).to_socket_addrs()?.collect())
}

/// Those that getent(1) tells, a line for each kind of socket.
fn addresses(told: &str, port: u16) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in told.lines().filter_map(|line| line.split_whitespace().next()?.parse::<IpAddr>().ok()) {
        let address = SocketAddr::new(address, port);
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getent_tells_an_address_for_each_kind_of_socket() {
        let told = "::1             STREAM localhost\n::1             DGRAM\nfe80::1%eth0 STREAM\n\
                    127.0.0.1       STREAM localhost\nx\n\n";
        let expected: [SocketAddr; 2] = ["[::1]:8".parse().unwrap(), "127.0.0.1:8".parse().unwrap()];
        assert_eq!(addresses(told, 8), expected);
    }
}
