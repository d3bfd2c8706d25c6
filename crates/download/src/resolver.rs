//! Resolves host names and rejects private IP addresses. The addresses that are checked here are the ones that are connected to, for every
//! request of a chain of redirects.

use std::net::IpAddr;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::urls::why_private;

/// A host that must not be contacted.
#[derive(Debug, thiserror::Error)]
#[error("its host `{host}` is {kind} ({ip}), which only `download.allow_private = true` allows")]
pub struct Private {
    host: String,
    ip: IpAddr,
    kind: &'static str,
}

/// A resolver that rejects a host if any of its IP addresses is not public.
#[derive(Debug)]
pub struct PublicOnly<R>(pub R);

impl<R: Resolver> Resolver for PublicOnly<R> {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        let private = found.iter().find_map(|address| Some((address.ip(), why_private(address.ip())?)));
        match private {
            Some((ip, kind)) => {
                let host = uri.host().unwrap_or_default().to_owned();
                Err(ureq::Error::Other(Box::new(Private { host, ip, kind })))
            }
            None => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use ureq::unversioned::resolver::DefaultResolver;

    use super::*;

    /// A name server that somebody else controls.
    #[derive(Debug)]
    struct Names(Vec<(&'static str, Vec<&'static str>)>);

    impl Resolver for Names {
        fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let (_, ips) =
                self.0.iter().find(|(name, _)| Some(*name) == uri.host()).ok_or(ureq::Error::HostNotFound)?;
            let mut found = self.empty();
            ips.iter().for_each(|ip| found.push((ip.parse::<IpAddr>().unwrap(), 80).into()));
            Ok(found)
        }
    }

    fn ask(resolver: &impl Resolver, address: &str) -> Result<usize, String> {
        let found = resolver.resolve(&address.parse().unwrap(), &Config::default(), NextTimeout::default());
        found.map(|found| found.len()).map_err(|e| e.to_string())
    }

    /// This covers redirects too: each one resolves the host that it leads to.
    #[test]
    fn a_name_that_leads_into_a_private_network_is_refused() {
        let names = PublicOnly(Names(vec![
            ("public.example", vec!["1.1.1.1", "2606:4700::1111"]),
            ("loop.example", vec!["127.0.0.1"]),
            ("both.example", vec!["1.1.1.1", "10.0.0.1"]),
            ("mapped.example", vec!["::ffff:169.254.169.254"]),
        ]));
        assert_eq!(ask(&names, "http://public.example/a"), Ok(2));
        for (name, kind) in
            [("loop", "this machine"), ("both", "a private network"), ("mapped", "a link-local address")]
        {
            let message = ask(&names, &format!("http://{name}.example/a")).unwrap_err();
            assert!(message.contains(kind) && message.contains("download.allow_private"), "{message}");
        }
    }

    #[test]
    fn addresses_without_a_name_are_checked_too() {
        let resolver = PublicOnly(DefaultResolver::default());
        for address in ["http://127.0.0.1/", "http://[::1]/", "http://[::ffff:7f00:1]/", "http://0.0.0.0:8080/"] {
            assert!(ask(&resolver, address).unwrap_err().contains("its host"), "{address}");
        }
        assert_eq!(ask(&resolver, "http://1.1.1.1/"), Ok(1));
    }
}
