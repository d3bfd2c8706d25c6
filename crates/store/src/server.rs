//! A PostgreSQL server: one connection at a time, and a time limit for everything that it is asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use tokio::net::lookup_host;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::FromSqlOwned;
use tokio_postgres::{Client, Config, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::StoreError;

/// The time limit for a check of the connection, for the acknowledgement of a packet, and for resolving a name. It is also the time limit
/// for connecting to one address, unless the URL has another, and for what follows until the connection can be used.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time limit of a statement, including the time that it waits for locks.
const STATEMENT: &str = "set statement_timeout = '60s'";
/// The time within which PostgreSQL must have answered a statement, or reported that it took too long.
const ANSWER: Duration = Duration::from_secs(65);
/// The time for which a server that has not answered is not asked again, so that waiting requests do not each wait for a time limit.
const PAUSE: Duration = Duration::from_secs(2);

/// A connection, and the task that sends and receives its packets.
struct Connection {
    client: Client,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The task of a server that does not answer would otherwise never end.
        self.task.abort();
    }
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// When the server did not answer, if that is the last thing known about it.
    silence: Option<(Instant, Duration)>,
}

/// A server that is asked from threads that may block. A server that stops answering is an error after a time limit.
pub(crate) struct Server {
    /// One configuration per host, in the order in which they are tried.
    hosts: Vec<Config>,
    location: String,
    /// `None` only while the value is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    state: Mutex<State>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The name of a host may still be looked up, which cannot be interrupted.
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// The server at a URL. It is not connected yet.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        let urls = urls_of_hosts(url).ok_or_else(invalid)?;
        let all = parse(url)?;
        // Hosts may also be given as parameters.
        let hosts = if urls.len() == all.get_hosts().len() {
            urls.iter().map(|url| parse(url)).collect::<Result<_, _>>()?
        } else {
            vec![all.clone()]
        };
        // The thread of the runtime sends what a dropped transaction leaves behind.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| {
            StoreError::Settings(format!(
                "failed to start a thread for PostgreSQL: {error}; end other programs, and try again"
            ))
        })?;
        let handle = runtime.handle().clone();
        Ok(Self { hosts, location: location(&all), runtime: Some(runtime), handle, state: Mutex::default() })
    }

    /// Where the server is, without user and password.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Calls `ask` with a working connection: a new one if there is none, or if the last one was lost.
    pub fn with_client<T>(&self, ask: impl AsyncFnOnce(&mut Client) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limit)) = state.silence.filter(|(at, _)| at.elapsed() < PAUSE) {
            return Err(self.no_answer(limit));
        }
        let held = state.connection.take();
        let answered = self.handle.block_on(async {
            let mut connection = match self.if_working(held).await {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            let answer = ask(&mut connection.client).await;
            // An error of the server may have left the connection in any state.
            if answer.as_ref().err().is_none_or(|error| !error.is_temporary()) {
                state.connection = Some(connection);
            }
            answer
        });
        state.silence = match &answered {
            Err(StoreError::Silent { limit, .. }) => Some((Instant::now(), *limit)),
            _ => None,
        };
        answered
    }

    /// Waits for the answer to a statement, which must come within a limit.
    pub async fn answer<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        self.within(ANSWER, asked).await
    }

    /// A value of a row. The tables may have been changed, so its type is checked.
    pub fn column<T: FromSqlOwned>(&self, row: &Row, at: usize) -> Result<T, StoreError> {
        row.try_get(at).map_err(|error| StoreError::changed_tables(&self.location, &error))
    }

    async fn if_working(&self, held: Option<Connection>) -> Option<Connection> {
        let connection = held?;
        let checked = timeout(PATIENCE, connection.client.check_connection()).await;
        checked.is_ok_and(|answer| answer.is_ok()).then_some(connection)
    }

    /// Connects to the first host that can be used.
    async fn connect(&self) -> Result<Connection, StoreError> {
        let mut failure = self.no_answer(PATIENCE);
        for host in &self.hosts {
            match self.connect_to(host).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, host: &Config) -> Result<Connection, StoreError> {
        let limit = host.get_connect_timeout().copied().unwrap_or(PATIENCE) * self.addresses(host).await? + PATIENCE;
        let connection = match host.get_ssl_mode() {
            SslMode::Require => started(self.within(limit, host.connect(self.tls()?)).await?),
            _ => started(self.within(limit, host.connect(NoTls)).await?),
        };
        self.answer(connection.client.batch_execute(STATEMENT)).await?;
        Ok(connection)
    }

    /// The number of addresses of the hosts, which are tried one after the other.
    async fn addresses(&self, host: &Config) -> Result<u32, StoreError> {
        let mut count = 0;
        for (at, own) in host.get_hosts().iter().enumerate() {
            let Host::Tcp(name) = own else {
                count += 1;
                continue;
            };
            let found = timeout(PATIENCE, lookup_host((name.as_str(), port(host, at)))).await;
            count +=
                found.map_err(|_| StoreError::unknown_host(&self.location, name))?.map_or(1, Iterator::count) as u32;
        }
        Ok(count.max(1))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let answered = timeout(limit, asked).await.map_err(|_| self.no_answer(limit))?;
        answered.map_err(|error| self.failure(&error))
    }

    fn no_answer(&self, limit: Duration) -> StoreError {
        StoreError::Silent { location: self.location.clone(), limit }
    }

    /// TLS that trusts the certificate authorities of the system, or those in `SSL_CERT_FILE`, and verifies the host name.
    fn tls(&self) -> Result<MakeRustlsConnect, StoreError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(StoreError::Settings(format!(
                "`sslmode=require` in `serve.store`: no certificates of authorities were found to verify {}; install ca-certificates, \
                 or name a file of such certificates in `SSL_CERT_FILE`",
                self.location
            )));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let versions = versions.map_err(|e| StoreError::Settings(format!("TLS cannot be used: {e}")))?;
        Ok(MakeRustlsConnect::new(versions.with_root_certificates(roots).with_no_client_auth()))
    }

    fn failure(&self, error: &tokio_postgres::Error) -> StoreError {
        let config = &self.hosts[0];
        let user = config.get_user().unwrap_or_default();
        let database = config.get_dbname().unwrap_or(user);
        StoreError::of_postgres(error, &self.location, user, database)
    }
}

/// Starts the task of a connection.
fn started<C>((client, connection): (Client, C)) -> Connection
where
    C: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
{
    Connection { client, task: tokio::spawn(async { drop(connection.await) }) }
}

fn invalid() -> StoreError {
    StoreError::Settings(
        "`serve.store` is not a PostgreSQL URL: expected `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with special \
         characters of the password as %XX, and `sslmode` as `disable` or `require`"
            .to_owned(),
    )
}

fn parse(url: &str) -> Result<Config, StoreError> {
    // The parser's message is dropped because it may repeat a part of the password.
    let mut config: Config = url.parse().map_err(|_| invalid())?;
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(PATIENCE);
    }
    config.tcp_user_timeout(PATIENCE).application_name("mp4sr");
    if config.get_ssl_mode() != SslMode::Require {
        config.ssl_mode(SslMode::Disable);
    }
    Ok(config)
}

/// One URL per host of a URL that may name several; `None` if its parts cannot be told apart because a password is not encoded.
fn urls_of_hosts(url: &str) -> Option<Vec<String>> {
    let (scheme, rest) = url.split_once("://")?;
    let (user, rest) = match rest.split_once('@') {
        Some((user, rest)) if !user.contains('?') && !rest.contains('@') => (format!("{user}@"), rest),
        Some(_) => return None,
        None => (String::new(), rest),
    };
    let (hosts, end) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Some(hosts.split(',').map(|host| format!("{scheme}://{user}{host}{end}")).collect())
}

fn port(config: &Config, at: usize) -> u16 {
    let ports = config.get_ports();
    ports.get(at).or(ports.first()).copied().unwrap_or(5432)
}

/// The hosts, the ports and the database of a URL.
fn location(config: &Config) -> String {
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(config, at)),
        Host::Unix(path) => format!("{}:{}", path.display(), port(config, at)),
    });
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("PostgreSQL at `{}/{database}`", hosts.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_of_a_url_has_its_own_and_passwords_are_encoded() {
        for (url, urls) in [
            (
                "postgres://u:p@h:1,[::1]:2/d?sslmode=require",
                &["postgres://u:p@h:1/d?sslmode=require", "postgres://u:p@[::1]:2/d?sslmode=require"][..],
            ),
            ("postgresql://h/d", &["postgresql://h/d"]),
            ("postgres://u:a/b@h", &["postgres://u:a/b@h"]),
            ("postgres:///d?host=/tmp", &["postgres:///d?host=/tmp"]),
        ] {
            assert_eq!(urls_of_hosts(url).unwrap(), urls);
        }
        for url in ["postgres://u:a@b@h/d", "postgres://h/d?user=u&password=a@b"] {
            assert_eq!(urls_of_hosts(url), None);
        }
        let server = Server::new("postgres://u:p%40q@one:1,two/d").unwrap();
        assert_eq!((server.hosts.len(), server.location()), (2, "PostgreSQL at `one:1,two:5432/d`"));
    }
}
