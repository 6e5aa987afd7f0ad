//! Proxies, as the environment names them for every program.

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use crate::error::{Error, Result};

/// Who is asked in the place of a server. The default is nobody.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
}

impl Proxies {
    /// As curl reads them: `http_proxy`, `https_proxy` and `all_proxy`, but for the hosts of `no_proxy`;
    /// in capitals, too.
    ///
    /// # Errors
    ///
    /// When one of them is no proxy that can be used.
    pub fn from_environment() -> Result<Proxies> {
        let variable = |name: &'static str| -> Option<(&'static str, String)> {
            let value = std::env::var(name).ok().filter(|value| !value.trim().is_empty())?;
            Some((name, value))
        };
        let first = |names: [&'static str; 4]| names.into_iter().find_map(variable);
        let except =
            ["no_proxy", "NO_PROXY"].into_iter().find_map(variable).map_or(String::new(), |(_, value)| value);
        let parse = |found: Option<(&'static str, String)>| -> Result<Option<Proxy>> {
            found.map(|(name, value)| parse(name, value.trim(), &except)).transpose()
        };
        Ok(Proxies {
            http: parse(first(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]))?,
            https: parse(first(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]))?,
        })
    }

    /// Proxies by name.
    ///
    /// # Errors
    ///
    /// When one of them is no proxy that can be used.
    pub fn new(http: Option<&str>, https: Option<&str>, except: &str) -> Result<Proxies> {
        let parse = |name, value: Option<&str>| value.map(|value| parse(name, value, except)).transpose();
        Ok(Proxies { http: parse("the proxy for http", http)?, https: parse("the proxy for https", https)? })
    }

    /// That for `http`: it is asked for the whole URL.
    pub fn http(&self) -> Option<&Proxy> {
        self.http.as_ref()
    }

    /// That for `https`: it passes bytes on.
    pub fn https(&self) -> Option<&Proxy> {
        self.https.as_ref()
    }
}

/// The host of a proxy, to be looked up.
pub fn address(proxy: &Proxy) -> Uri {
    proxy.uri().clone()
}

/// A value may have a password in it, and is not shown.
fn parse(name: &str, value: &str, except: &str) -> Result<Proxy> {
    let bad = || {
        Error::Usage(format!(
            "{name} is no proxy that can be used here: it is http://[user:password@]host[:port]"
        ))
    };
    let parsed = Proxy::new(value).map_err(|_| bad())?;
    if parsed.protocol() != ProxyProtocol::Http {
        return Err(bad());
    }
    let mut builder = Proxy::builder(ProxyProtocol::Http).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    for host in except.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        let bare = host.trim_start_matches('.');
        builder = builder.no_proxy(bare).no_proxy(&format!(".{bare}"));
    }
    builder.build().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_proxy_is_told_without_its_password() {
        for bad in ["socks5://u:sesame@h", "https://u:sesame@h:1", "http://u:sesame@", "x://u:sesame@h"] {
            let error = Proxies::new(Some(bad), None, "").unwrap_err();
            assert!(error.exit_code() == 1 && !error.to_string().contains("sesame"), "{error}");
        }
    }

    #[test]
    fn hosts_that_are_excepted_are_reached_directly() {
        let proxies = Proxies::new(Some("proxy:3128"), None, "localhost, .example.org,10.0.0.1").unwrap();
        let proxy = proxies.http().unwrap();
        assert_eq!((proxy.host(), proxy.port()), ("proxy", 3128));
        let direct = |url: &str| proxy.is_no_proxy(&url.parse().unwrap());
        for url in
            ["http://localhost:1/", "http://example.org/", "http://a.example.org/x", "http://10.0.0.1/"]
        {
            assert!(direct(url), "{url}");
        }
        assert!(!direct("http://other/") && !direct("http://notexample.org/"));
        let all = Proxies::new(Some("http://proxy"), None, "*").unwrap();
        assert!(all.http().unwrap().is_no_proxy(&"http://h/".parse().unwrap()));
    }
}
