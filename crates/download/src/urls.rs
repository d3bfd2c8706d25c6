//! URLs: which ones may be requested, and which host they belong to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mp4sr_artifact::Downloads;
use url::Url;

use crate::outcome::{Fate, Verdict};

/// Parses a URL as browsers do: spaces and non-ASCII letters are percent-encoded.
pub fn parse(text: &str) -> Result<Url, Verdict> {
    checked(Url::parse(text), text)
}

/// Resolves the target of a redirect.
pub fn follow(from: &Url, location: &str) -> Result<Url, Verdict> {
    checked(from.join(location), location)
}

fn checked(parsed: Result<Url, url::ParseError>, text: &str) -> Result<Url, Verdict> {
    let refuse = |reason: String| Err(Verdict::new(Fate::Refused, reason));
    let mut url = match parsed {
        Ok(url) => url,
        Err(reason) => return refuse(format!("`{}` is not a valid URL ({reason})", shown_text(text))),
    };
    if !matches!(url.scheme(), "http" | "https") {
        return refuse(format!("its scheme `{}` is neither http nor https", url.scheme()));
    }
    url.set_fragment(None);
    Ok(url)
}

/// A URL in the form for messages: without user name, password and fragment, and with `...` in place of its parameters and its query, which
/// may contain signatures and tokens.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // This fails only for URLs without a host, which have neither a user name nor a password.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    if url.query().is_some_and(|query| !query.is_empty()) {
        url.set_query(Some("..."));
    }
    if let Some((path, _)) = url.path().to_owned().split_once(';') {
        url.set_path(&format!("{path};..."));
    }
    url.set_fragment(None);
    url.to_string()
}

/// Like [`shown`], but for a text that may not be a valid URL.
pub fn shown_text(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) => shown(&url),
        Err(_) if text.contains("://") => Downloads::shown(text),
        Err(_) => text.split(['?', '#', ';']).next().unwrap_or_default().to_owned(),
    }
}

/// The host and port of a URL, by which transfers are counted for the limit per host.
pub fn host(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

/// The kind of network that a non-public IP address belongs to; `None` if the IP address is public.
pub fn why_private(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => why_private_v4(ip),
        IpAddr::V6(ip) => why_private_v6(ip),
    }
}

fn why_private_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (0, ..) => Some("an unspecified address"),
        (127, ..) => Some("this machine"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Some("a private network"),
        (169, 254, _) => Some("a link-local address"),
        (224..=239, ..) => Some("a multicast address"),
        (192, 0, 0 | 2) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) | (240.., ..) => {
            Some("a reserved address")
        }
        _ => None,
    }
}

fn why_private_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if let Some(inner) = ipv4_within(ip) {
        return why_private_v4(inner);
    }
    match ip.segments() {
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Some("a private network"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        [0x2001, 0xdb8, ..] => Some("a reserved address"),
        _ if ip.is_loopback() => Some("this machine"),
        _ if ip.is_unspecified() => Some("an unspecified address"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address embeds: mapped (`::ffff:0:0/96`), translated (`64:ff9b::/96`), 6to4 (`2002::/16`), or in the
/// deprecated compatible form (`::/96`).
fn ipv4_within(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            from(high, low)
        }
        [0, 0, 0, 0, 0, 0, high, low] if high > 0 => from(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_network_is_public() {
        for private in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fdff::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ] {
            assert!(why_private(private.parse().unwrap()).is_some(), "{private}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert_eq!(why_private(public.parse().unwrap()), None, "{public}");
        }
    }

    #[test]
    fn urls_are_parsed_as_browsers_do() {
        let read = |text| parse(text).map(|url| url.to_string());
        assert_eq!(read("HTTP://x.org/a b\u{e9}.jpg#part").unwrap(), "http://x.org/a%20b%C3%A9.jpg");
        assert_eq!(read("http://0x7f.1/").unwrap(), "http://127.0.0.1/", "other spellings of an IP address");
        let base = parse("https://x.org/a/b?c").unwrap();
        assert_eq!(follow(&base, "../d").unwrap().as_str(), "https://x.org/d");
        for (bad, reason) in
            [("http://", "not a valid URL"), ("x", "not a valid URL"), ("ftp://x.org/a", "neither http nor https")]
        {
            let verdict = parse(bad).unwrap_err();
            assert!(verdict.fate == Fate::Refused && verdict.reason.contains(reason), "{verdict:?}");
        }
        assert_eq!(follow(&base, "file:///etc/passwd").unwrap_err().fate, Fate::Refused);
    }
}
