//! The store of added items in PostgreSQL.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mp4sr_artifact::Items;
use mp4sr_pipeline::Context;
use mp4sr_pipeline::text::{quoted, some_of};
use mp4sr_run::NewItems;
use postgres::config::{Host, SslMode};
use postgres::{Client, Config, IsolationLevel, NoTls, Transaction};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::StoreError;
use crate::generation::{self, ItemTexts, StoredItem, StoredRows};

/// The version of the tables that this release reads and writes.
const SCHEMA: i32 = 1;
/// The SQL that creates the tables.
const TABLES: &str = include_str!("../../../deploy/store.sql");
/// The key of the advisory lock that is held while tables are created; its value is arbitrary.
const MAKING_TABLES: i64 = 0x6d70_3473_7231;
/// The time limit for connecting, for a check of the connection, and for the acknowledgement of a packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time limit of a statement, including the time that it waits for locks.
const STATEMENT: &str = "set statement_timeout = '60s'";

/// The result of adding items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The ids that the run did not have.
    pub new: Vec<String>,
    /// The ids of items that were added earlier and are now replaced.
    pub replaced: Vec<String>,
    /// The total number of added items of the run.
    pub total: usize,
}

/// The added items of one run in PostgreSQL. Calls block, and use the connection one at a time.
pub struct PostgresStore {
    config: Config,
    /// The URL as it was given. It is only compared, and never shown.
    url: String,
    run: String,
    location: String,
    client: Mutex<Option<Client>>,
    /// The number of the change up to which items were read.
    seen: AtomicI64,
}

impl PostgresStore {
    /// Connects, and creates the tables if they do not exist.
    pub(crate) fn open(url: &str, context: &Context) -> Result<Self, StoreError> {
        // The parser's message is dropped because it may repeat a part of the password.
        let mut config: Config = url.parse().map_err(|_| {
            StoreError::Settings(
                "`serve.store` is not a PostgreSQL URL: expected `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with special \
                 characters of the password as %XX, and `sslmode` as `disable` or `require`"
                    .to_owned(),
            )
        })?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(PATIENCE);
        }
        config.tcp_user_timeout(PATIENCE).application_name("mp4sr");
        if config.get_ssl_mode() != SslMode::Require {
            config.ssl_mode(SslMode::Disable);
        }
        let own = Self {
            location: location(&config),
            config,
            url: url.to_owned(),
            run: run_name(context),
            client: Mutex::new(None),
            seen: AtomicI64::new(0),
        };
        own.with_client(|client| own.make_tables(client))?;
        Ok(own)
    }

    /// Whether this is the store of `context` at this URL.
    pub(crate) fn is_of(&self, url: &str, context: &Context) -> bool {
        self.url == url && self.run == run_name(context)
    }

    /// Where PostgreSQL is, without user and password.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether the items have changed since they were last read.
    pub fn has_changed(&self) -> Result<bool, StoreError> {
        let change = self.with_client(|client| {
            let row = client.query_opt("select change from mp4sr_runs where run = $1", &[&self.run]);
            Ok(row.map_err(|e| self.failure(&e))?.map_or(0, |row| row.get::<_, i64>(0)))
        })?;
        Ok(change != self.seen.load(Ordering::Acquire))
    }

    /// The added items as a model reads them; `None` if there are none.
    pub(crate) fn read(&self, context: &Context) -> anyhow::Result<Option<NewItems>> {
        let (change, dataset, stored) = self.snapshot()?;
        self.seen.store(change, Ordering::Release);
        if !stored.is_empty() {
            self.expect_dataset(&dataset, &dataset_of(context)?, stored.len() as i64)?;
        }
        read_stored(context, &stored)
    }

    /// The added items as a model would read them once `added` are put and `removed` are removed; `None` if none would be left.
    pub fn after(
        &self,
        context: &Context,
        added: &[StoredItem],
        removed: &[String],
    ) -> anyhow::Result<Option<NewItems>> {
        let gone: HashSet<&String> = added.iter().map(|item| &item.id).chain(removed).collect();
        let mut stored = self.stored()?;
        stored.retain(|item| !gone.contains(&item.id));
        stored.extend_from_slice(added);
        read_stored(context, &stored)
    }

    /// The added items in the order in which they were added.
    pub(crate) fn stored(&self) -> Result<Vec<StoredItem>, StoreError> {
        self.snapshot().map(|(_, _, stored)| stored)
    }

    /// The bytes of an image of an added item.
    pub fn image(&self, item: &str, number: usize) -> Result<Option<Vec<u8>>, StoreError> {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        self.with_client(|client| {
            let question = "select file from mp4sr_images where run = $1 and item_id = $2 and number = $3";
            let row = client.query_opt(question, &[&self.run, &item, &number]).map_err(|e| self.failure(&e))?;
            Ok(row.map(|row| row.get(0)))
        })
    }

    /// Adds all of the items to the run or, on an error, none of them; items that were added earlier with the same ids are replaced.
    /// Simultaneous calls, including those of other replicas, run one after the other.
    pub fn put(&self, context: &Context, items: &[StoredItem]) -> anyhow::Result<Change> {
        let dataset = dataset_of(context)?;
        let nul = items.iter().find(|item| item.id.contains('\0'));
        if let Some(item) = nul {
            return Err(StoreError::Refused(format!(
                "the id {:?} has a NUL character, which PostgreSQL does not accept; give the item another id",
                item.id
            ))
            .into());
        }
        let change = self.with_client(|client| {
            let mut transaction = client.transaction().map_err(|e| self.failure(&e))?;
            self.lock_run(&mut transaction, &dataset)?;
            let mut change = Change::default();
            for item in items {
                let changed =
                    if self.replace(&mut transaction, item)? { &mut change.replaced } else { &mut change.new };
                changed.push(item.id.clone());
            }
            change.total = self.count_change(&mut transaction)?;
            transaction.commit().map_err(|e| self.failure(&e))?;
            Ok(change)
        })?;
        Ok(change)
    }

    /// Removes all of the items or, on an error, none of them, and returns how many were removed. Ids that were not added are an error.
    pub fn remove(&self, ids: &[String]) -> Result<usize, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        self.with_client(|client| {
            let mut transaction = client.transaction().map_err(|e| self.failure(&e))?;
            // The lock is the one of `put`: a simultaneous `put` would otherwise change the number of items before it is counted.
            let lock = "select change from mp4sr_runs where run = $1 for update";
            transaction.query(lock, &[&self.run]).map_err(|e| self.failure(&e))?;
            let removed = "delete from mp4sr_items where run = $1 and item_id = any($2) returning item_id";
            let rows = transaction.query(removed, &[&self.run, &ids]).map_err(|e| self.failure(&e))?;
            let removed: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let unknown: Vec<&str> = ids.iter().filter(|id| !removed.contains(id)).map(String::as_str).collect();
            if !unknown.is_empty() {
                return Err(StoreError::Refused(format!(
                    "these items were not added to the run: {}; remove only items that `mp4sr items list` lists",
                    some_of(&unknown)
                )));
            }
            self.count_change(&mut transaction)?;
            transaction.commit().map_err(|e| self.failure(&e))?;
            Ok(removed.len())
        })
    }

    /// Waits until other changes of the run's items end, and blocks further ones until the end of the transaction.
    fn lock_run(&self, transaction: &mut Transaction<'_>, dataset: &str) -> Result<(), StoreError> {
        let make = "insert into mp4sr_runs (run, dataset, change) values ($1, $2, 0) on conflict (run) do nothing";
        transaction.execute(make, &[&self.run, &dataset]).map_err(|e| self.failure(&e))?;
        let lock = "select dataset from mp4sr_runs where run = $1 for update";
        let row = transaction.query_one(lock, &[&self.run]).map_err(|e| self.failure(&e))?;
        let count = self.count(transaction)?;
        if count == 0 {
            let adopt = "update mp4sr_runs set dataset = $2 where run = $1";
            transaction.execute(adopt, &[&self.run, &dataset]).map_err(|e| self.failure(&e))?;
            return Ok(());
        }
        self.expect_dataset(row.get(0), dataset, count)
    }

    fn count(&self, transaction: &mut Transaction<'_>) -> Result<i64, StoreError> {
        let count = "select count(*) from mp4sr_items where run = $1";
        Ok(transaction.query_one(count, &[&self.run]).map_err(|e| self.failure(&e))?.get(0))
    }

    /// Inserts an item after all others, and returns whether it replaces one with the same id.
    fn replace(&self, transaction: &mut Transaction<'_>, item: &StoredItem) -> Result<bool, StoreError> {
        let texts =
            item.texts_as_json().map_err(|e| StoreError::Refused(format!("the item {}: {e}", quoted(&item.id))))?;
        let fail = |e: postgres::Error| self.failure(&e);
        let delete = "delete from mp4sr_items where run = $1 and item_id = $2";
        let earlier = transaction.execute(delete, &[&self.run, &item.id]).map_err(fail)?;
        let insert =
            "insert into mp4sr_items (run, item_id, position, texts) values ($1, $2, nextval('mp4sr_position'), $3)";
        transaction.execute(insert, &[&self.run, &item.id, &texts]).map_err(fail)?;
        for StoredRows { modality, encoder, width, kind, values } in &item.features {
            let insert = "insert into mp4sr_features (run, item_id, modality, encoder, width, kind, rows) \
                          values ($1, $2, $3, $4, $5, $6, $7)";
            let width = *width as i32;
            transaction
                .execute(insert, &[&self.run, &item.id, modality, encoder, &width, kind, values])
                .map_err(fail)?;
        }
        for (number, file) in (0_i32..).zip(&item.images) {
            let insert = "insert into mp4sr_images (run, item_id, number, file) values ($1, $2, $3, $4)";
            if let Some(file) = file {
                transaction.execute(insert, &[&self.run, &item.id, &number, file]).map_err(fail)?;
            }
        }
        Ok(earlier > 0)
    }

    /// Marks the items as changed for other replicas, and returns the number of items.
    fn count_change(&self, transaction: &mut Transaction<'_>) -> Result<usize, StoreError> {
        let raise = "update mp4sr_runs set change = change + 1 where run = $1";
        transaction.execute(raise, &[&self.run]).map_err(|e| self.failure(&e))?;
        Ok(self.count(transaction)? as usize)
    }

    /// The number of the last change, the hash of the dataset for which the items were added, and the items.
    fn snapshot(&self) -> Result<(i64, String, Vec<StoredItem>), StoreError> {
        self.with_client(|client| {
            let fail = |e: postgres::Error| self.failure(&e);
            let reading = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
            let mut reading = reading.start().map_err(fail)?;
            let about = "select change, dataset from mp4sr_runs where run = $1";
            let Some(about) = reading.query_opt(about, &[&self.run]).map_err(fail)? else {
                return Ok((0, String::new(), Vec::new()));
            };
            let items = "select item_id, texts from mp4sr_items where run = $1 order by position";
            let mut stored = Vec::new();
            let mut indices = HashMap::new();
            for row in reading.query(items, &[&self.run]).map_err(fail)? {
                let (id, texts): (String, String) = (row.get(0), row.get(1));
                let texts: ItemTexts = serde_json::from_str(&texts).map_err(|e| {
                    StoreError::Refused(format!(
                        "the texts of the added item {} in {} are not as they were written ({e}); remove it with `mp4sr items remove` and add it again",
                        quoted(&id),
                        self.location
                    ))
                })?;
                indices.insert(id.clone(), stored.len());
                stored.push(StoredItem { id, texts, features: Vec::new(), images: Vec::new() });
            }
            let features = "select item_id, modality, encoder, width, kind, rows from mp4sr_features where run = $1";
            for row in reading.query(features, &[&self.run]).map_err(fail)? {
                let Some(&at) = indices.get(row.get::<_, &str>(0)) else { continue };
                stored[at].features.push(StoredRows {
                    modality: row.get(1),
                    encoder: row.get(2),
                    width: row.get::<_, i32>(3).max(0) as usize,
                    kind: row.get(4),
                    values: row.get(5),
                });
            }
            Ok((about.get(0), about.get(1), stored))
        })
    }

    /// Rejects items that were added to a run of the same name on another dataset.
    fn expect_dataset(&self, stored: &str, own: &str, count: i64) -> Result<(), StoreError> {
        if stored == own {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "the {count} items in {} were added to `{}` when its dataset had other items; remove them with `mp4sr items remove` and add them \
             again, or give this run another name",
            self.location, self.run
        )))
    }

    /// Creates the tables if they do not exist, and rejects those of another release.
    fn make_tables(&self, client: &mut Client) -> Result<(), StoreError> {
        let fail = |e: postgres::Error| self.failure(&e);
        let mut transaction = client.transaction().map_err(fail)?;
        // The lock ensures that of two replicas that start at once only one creates the tables.
        transaction.execute("select pg_advisory_xact_lock($1)", &[&MAKING_TABLES]).map_err(fail)?;
        let exists = transaction.query_one("select to_regclass('mp4sr_schema') is not null", &[]).map_err(fail)?;
        if !exists.get::<_, bool>(0) {
            transaction.batch_execute(TABLES).map_err(fail)?;
            return transaction.commit().map_err(fail);
        }
        let version = transaction.query_opt("select max(version) from mp4sr_schema", &[]).map_err(fail)?;
        let version: i32 = version.and_then(|row| row.get::<_, Option<i32>>(0)).unwrap_or(0);
        if version == SCHEMA {
            return transaction.commit().map_err(fail);
        }
        Err(StoreError::Refused(format!(
            "the tables of added items in {} have version {version}, and this release of mp4sr reads version {SCHEMA}; use the release that wrote \
             them, or another database",
            self.location
        )))
    }

    /// Calls `ask` with a working connection: a new one if there is none, or if the last one was lost.
    fn with_client<T>(&self, ask: impl FnOnce(&mut Client) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let working = held.take().and_then(|mut client| client.is_valid(PATIENCE).is_ok().then_some(client));
        let client = match working {
            Some(client) => client,
            None => self.connect()?,
        };
        ask(held.insert(client))
    }

    fn connect(&self) -> Result<Client, StoreError> {
        let connected = match self.config.get_ssl_mode() {
            SslMode::Require => self.config.connect(self.tls()?),
            _ => self.config.connect(NoTls),
        };
        let mut client = connected.map_err(|e| self.failure(&e))?;
        client.batch_execute(STATEMENT).map_err(|e| self.failure(&e))?;
        Ok(client)
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

    fn failure(&self, error: &postgres::Error) -> StoreError {
        let user = self.config.get_user().unwrap_or_default();
        let database = self.config.get_dbname().unwrap_or(user);
        StoreError::of_postgres(error, &self.location, user, database)
    }
}

/// Items of the database as a model reads them; `None` if there are none.
fn read_stored(context: &Context, stored: &[StoredItem]) -> anyhow::Result<Option<NewItems>> {
    if stored.is_empty() {
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let own = context.layout.at(folder.path());
    generation::write(&own, &context.config, stored)?;
    // Mapped files stay readable after the folder is deleted.
    NewItems::read_from(&own, &context.config).map(Some)
}

/// The name of a run in the database.
fn run_name(context: &Context) -> String {
    format!("{}/{}", context.config.dataset.name, context.layout.run_name())
}

/// The hash of the ids of the dataset's items, in order.
fn dataset_of(context: &Context) -> anyhow::Result<String> {
    Ok(Items::read(&context.layout.items())?.hash().as_str().to_owned())
}

/// The hosts, the ports and the database of a URL.
fn location(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| {
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("PostgreSQL at `{}/{database}`", hosts.collect::<Vec<_>>().join(","))
}
