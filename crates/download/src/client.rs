//! Sends HTTP requests and follows redirects to the final response.

use std::io::ErrorKind;
use std::time::Duration;

use mp4sr_pipeline::config::Download;
use ureq::http::{HeaderMap, Response, header};
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::{DefaultResolver, Resolver};
use ureq::unversioned::transport::{Connector as _, DefaultConnector};
use ureq::{Agent, Body, Proxy, Timeout};
use url::Url;

use crate::as_stored::AsStored;
use crate::outcome::{Fate, Trouble};
use crate::part::PartialState;
use crate::resolver::{Private, PublicOnly};
use crate::urls;

const MAX_REDIRECTS: usize = 5;

/// What a client fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// Raw files of any size.
    Raw,
    /// Images, whose size is limited, so that the time of a transfer can be limited too.
    Image,
}

/// Sends requests with the settings of `[download]`.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    timeout: Duration,
}

impl Client {
    pub fn new(settings: &Download, kind: ContentKind) -> Self {
        let timeout = Duration::from_secs(settings.timeout_seconds);
        // A server that sends a byte now and then must not hold a thread forever.
        let whole_body = (kind == ContentKind::Image).then(|| timeout * 20);
        let accept = if kind == ContentKind::Image { "image/jpeg,image/png,image/webp,*/*;q=0.5" } else { "*/*" };
        // A proxy resolves host names itself, so private networks could not be excluded.
        let proxy = if settings.allow_private { Proxy::try_from_env() } else { None };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(user_agent(&settings.contact))
            .accept(accept)
            .accept_encoding("identity")
            .tls_config(TlsConfig::default())
            .proxy(proxy)
            .max_idle_connections(settings.connections)
            .max_idle_connections_per_host(settings.per_host)
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_per_read(Some(timeout))
            .timeout_per_write(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_recv_body(whole_body)
            .build();
        let agent = if settings.allow_private {
            with_resolver(config, DefaultResolver::default())
        } else {
            with_resolver(config, PublicOnly(DefaultResolver::default()))
        };
        Self { agent, timeout }
    }

    /// Follows redirects to the final response. `enter` is called with each URL before it is requested, and may refuse it.
    pub fn get(
        &self,
        url: &Url,
        held: Option<&PartialState>,
        enter: &mut dyn FnMut(&Url) -> Result<(), Trouble>,
    ) -> Result<Response<Body>, Trouble> {
        let mut way = vec![url.clone()];
        loop {
            let at = &way[way.len() - 1];
            enter(at)?;
            let response = self.ask(at, held)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next = next_hop(at, response.headers()).map_err(|t| t.with_status(response.status().as_u16()))?;
            let circle = way.contains(&next);
            way.push(next);
            if circle || way.len() > MAX_REDIRECTS + 1 {
                return Err(astray(&way, circle).with_status(response.status().as_u16()));
            }
        }
    }

    fn ask(&self, url: &Url, held: Option<&PartialState>) -> Result<Response<Body>, Trouble> {
        let mut request = self.agent.get(url.as_str());
        if let Some(held) = held {
            request = request
                .header(header::RANGE, format!("bytes={}-", held.length))
                .header(header::IF_RANGE, held.validator.as_str());
        }
        request.call().map_err(|e| self.trouble(e))
    }

    /// Converts an error of the HTTP library.
    pub fn trouble(&self, error: ureq::Error) -> Trouble {
        let seconds = self.timeout.as_secs();
        match error {
            ureq::Error::Other(inner) if inner.is::<Private>() => Trouble::lasting(Fate::Refused, inner.to_string()),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Trouble::lasting(Fate::Refused, format!("it is not a valid URL ({error})"))
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => {
                Trouble::lasting(Fate::Failed, format!("failed to establish an encrypted connection ({error})"))
            }
            // A certificate that is rejected is reported in this form.
            ureq::Error::Io(e) if e.kind() == ErrorKind::InvalidData => {
                Trouble::lasting(Fate::Failed, format!("failed to establish an encrypted connection ({e})"))
            }
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                Trouble::passing(format!("no connection within {seconds} s"))
            }
            ureq::Error::Timeout(Timeout::RecvBody) => {
                Trouble::passing(format!("the download did not finish within {} s", seconds * 20))
            }
            ureq::Error::Timeout(_) => Trouble::passing(format!("no data arrived for {seconds} s")),
            ureq::Error::HostNotFound => Trouble::passing("its host is unknown"),
            ureq::Error::Io(e) if e.kind() == ErrorKind::UnexpectedEof => {
                Trouble::passing("the connection was closed early")
            }
            other => Trouble::passing(format!("no response ({other})")),
        }
    }
}

fn with_resolver(config: ureq::config::Config, resolver: impl Resolver) -> Agent {
    Agent::with_parts(config, DefaultConnector::default().chain(AsStored), resolver)
}

fn user_agent(contact: &str) -> String {
    let name = concat!("mp4sr/", env!("CARGO_PKG_VERSION"));
    if contact.is_empty() { name.to_owned() } else { format!("{name} ({contact})") }
}

fn next_hop(from: &Url, headers: &HeaderMap) -> Result<Url, Trouble> {
    let location = headers.get(header::LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let location = location.ok_or_else(|| Trouble::lasting(Fate::Failed, "a redirect without a target"))?;
    urls::follow(from, &location).map_err(|mut verdict| {
        verdict.reason = format!("its redirect was refused: {}", verdict.reason);
        Trouble::Final(verdict)
    })
}

fn astray(way: &[Url], circle: bool) -> Trouble {
    let what = if circle { "redirect loop".to_owned() } else { format!("more than {MAX_REDIRECTS} redirects") };
    let way: Vec<_> = way.iter().map(urls::shown).collect();
    Trouble::lasting(Fate::Failed, format!("{what}: {}", way.join(" -> ")))
}
