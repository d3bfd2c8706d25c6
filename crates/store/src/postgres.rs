//! The store of added items in PostgreSQL.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};

use mp4sr_artifact::Items;
use mp4sr_pipeline::Context;
use mp4sr_pipeline::text::{quoted, some_of};
use mp4sr_run::NewItems;
use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

use crate::StoreError;
use crate::generation::{self, ItemTexts, StoredItem, StoredRows};
use crate::server::Server;

/// The version of the tables that this release reads and writes.
const SCHEMA: i32 = 1;
/// The SQL that creates the tables.
const TABLES: &str = include_str!("../../../deploy/store.sql");
/// The key of the advisory lock that is held while tables are created; its value is arbitrary.
const MAKING_TABLES: i64 = 0x6d70_3473_7231;
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
    server: Server,
    /// The URL as it was given. It is only compared, and never shown.
    url: String,
    run: String,
    /// The number of the change up to which items were read.
    seen: AtomicI64,
}

impl PostgresStore {
    /// Connects, and creates the tables if they do not exist.
    pub(crate) fn open(url: &str, context: &Context) -> Result<Self, StoreError> {
        let own =
            Self { server: Server::new(url)?, url: url.to_owned(), run: run_name(context), seen: AtomicI64::new(0) };
        own.server.with_client(async |client| own.make_tables(client).await)?;
        Ok(own)
    }

    /// Whether this is the store of `context` at this URL.
    pub(crate) fn is_of(&self, url: &str, context: &Context) -> bool {
        self.url == url && self.run == run_name(context)
    }

    /// Where PostgreSQL is, without user and password.
    pub fn location(&self) -> &str {
        self.server.location()
    }

    /// Whether the items have changed since they were last read.
    pub fn has_changed(&self) -> Result<bool, StoreError> {
        let change = self.server.with_client(async |client| {
            let question = "select change from mp4sr_runs where run = $1";
            let row = self.server.answer(client.query_opt(question, &[&self.run])).await?;
            row.map_or(Ok(0), |row| self.server.column::<i64>(&row, 0))
        })?;
        Ok(change != self.seen.load(Ordering::Acquire))
    }

    /// The added items as a model reads them; `None` if there are none.
    pub(crate) fn read(&self, context: &Context) -> anyhow::Result<Option<NewItems>> {
        // A change counts as seen even if its items cannot be read. Otherwise every poll would read them again at once.
        let seen = |change| self.seen.store(change, Ordering::Release);
        let (dataset, stored) = self.snapshot(seen)?;
        if !stored.is_empty() {
            self.expect_dataset(&dataset, &dataset_of(context)?, stored.len() as i64)?;
        }
        read_stored(context, &stored)
    }

    /// The added items as a model would read them once `added` are put and `removed` are removed; `None` if none would be left. Ids of
    /// `removed` that were not added are an error.
    pub fn after(
        &self,
        context: &Context,
        added: &[StoredItem],
        removed: &[String],
    ) -> anyhow::Result<Option<NewItems>> {
        let gone: HashSet<&String> = added.iter().map(|item| &item.id).chain(removed).collect();
        let mut stored = self.stored()?;
        let known: HashSet<&String> = stored.iter().map(|item| &item.id).collect();
        let unknown: Vec<&str> = removed.iter().filter(|id| !known.contains(id)).map(String::as_str).collect();
        if !unknown.is_empty() {
            return Err(not_added(&unknown).into());
        }
        stored.retain(|item| !gone.contains(&item.id));
        stored.extend_from_slice(added);
        read_stored(context, &stored)
    }

    /// The added items in the order in which they were added.
    pub(crate) fn stored(&self) -> Result<Vec<StoredItem>, StoreError> {
        self.snapshot(|_| ()).map(|(_, stored)| stored)
    }

    /// The bytes of an image of an added item.
    pub fn image(&self, item: &str, number: usize) -> Result<Option<Vec<u8>>, StoreError> {
        if item.contains('\0') {
            return Ok(None);
        }
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        self.server.with_client(async |client| {
            let question = "select file from mp4sr_images where run = $1 and item_id = $2 and number = $3";
            let row = self.server.answer(client.query_opt(question, &[&self.run, &item, &number])).await?;
            row.map(|row| self.server.column(&row, 0)).transpose()
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
        let change = self.server.with_client(async |client| {
            let transaction = self.server.answer(client.transaction()).await?;
            self.lock_run(&transaction, &dataset).await?;
            let mut change = Change::default();
            for item in items {
                let changed =
                    if self.replace(&transaction, item).await? { &mut change.replaced } else { &mut change.new };
                changed.push(item.id.clone());
            }
            self.expect_one_encoder(&transaction, context).await?;
            change.total = self.count_change(&transaction).await?;
            self.server.answer(transaction.commit()).await?;
            Ok(change)
        })?;
        Ok(change)
    }

    /// Removes all of the items or, on an error, none of them, and returns how many were removed. Ids that were not added are an error.
    pub fn remove(&self, ids: &[String]) -> Result<usize, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        // PostgreSQL has no text with a NUL character, so no item has such an id.
        let asked: Vec<&String> = ids.iter().filter(|id| !id.contains('\0')).collect();
        self.server.with_client(async |client| {
            let transaction = self.server.answer(client.transaction()).await?;
            // The lock is the one of `put`: a simultaneous `put` would otherwise change the number of items before it is counted.
            let lock = "select change from mp4sr_runs where run = $1 for update";
            self.server.answer(transaction.query(lock, &[&self.run])).await?;
            let removed = "delete from mp4sr_items where run = $1 and item_id = any($2) returning item_id";
            let rows = self.server.answer(transaction.query(removed, &[&self.run, &asked])).await?;
            let removed: HashSet<String> =
                rows.iter().map(|row| self.server.column(row, 0)).collect::<Result<_, _>>()?;
            let unknown: Vec<&str> = ids.iter().filter(|id| !removed.contains(*id)).map(String::as_str).collect();
            if !unknown.is_empty() {
                return Err(not_added(&unknown));
            }
            self.count_change(&transaction).await?;
            self.server.answer(transaction.commit()).await?;
            Ok(removed.len())
        })
    }

    /// Waits until other changes of the run's items end, and blocks further ones until the end of the transaction.
    async fn lock_run(&self, transaction: &Transaction<'_>, dataset: &str) -> Result<(), StoreError> {
        let make = "insert into mp4sr_runs (run, dataset, change) values ($1, $2, 0) on conflict (run) do nothing";
        self.server.answer(transaction.execute(make, &[&self.run, &dataset])).await?;
        let lock = "select dataset from mp4sr_runs where run = $1 for update";
        let row = self.server.answer(transaction.query_one(lock, &[&self.run])).await?;
        let count = self.count(transaction).await?;
        if count == 0 {
            let adopt = "update mp4sr_runs set dataset = $2 where run = $1";
            self.server.answer(transaction.execute(adopt, &[&self.run, &dataset])).await?;
            return Ok(());
        }
        self.expect_dataset(&self.server.column::<String>(&row, 0)?, dataset, count)
    }

    async fn count(&self, transaction: &Transaction<'_>) -> Result<i64, StoreError> {
        let count = "select count(*) from mp4sr_items where run = $1";
        self.server.column(&self.server.answer(transaction.query_one(count, &[&self.run])).await?, 0)
    }

    /// Inserts an item after all others, and returns whether it replaces one with the same id.
    async fn replace(&self, transaction: &Transaction<'_>, item: &StoredItem) -> Result<bool, StoreError> {
        let texts =
            item.texts_as_json().map_err(|e| StoreError::Refused(format!("the item {}: {e}", quoted(&item.id))))?;
        let delete = "delete from mp4sr_items where run = $1 and item_id = $2";
        let earlier = self.server.answer(transaction.execute(delete, &[&self.run, &item.id])).await?;
        let insert =
            "insert into mp4sr_items (run, item_id, position, texts) values ($1, $2, nextval('mp4sr_position'), $3)";
        self.server.answer(transaction.execute(insert, &[&self.run, &item.id, &texts])).await?;
        for StoredRows { modality, encoder, width, kind, values } in &item.features {
            let insert = "insert into mp4sr_features (run, item_id, modality, encoder, width, kind, rows) \
                          values ($1, $2, $3, $4, $5, $6, $7)";
            let width = *width as i32;
            self.server
                .answer(transaction.execute(insert, &[&self.run, &item.id, modality, encoder, &width, kind, values]))
                .await?;
        }
        for (number, file) in (0_i32..).zip(&item.images) {
            let insert = "insert into mp4sr_images (run, item_id, number, file) values ($1, $2, $3, $4)";
            if let Some(file) = file {
                self.server.answer(transaction.execute(insert, &[&self.run, &item.id, &number, file])).await?;
            }
        }
        Ok(earlier > 0)
    }

    /// Rejects a change after which items lack features that the model reads, or have those of two encoders.
    async fn expect_one_encoder(&self, transaction: &Transaction<'_>, context: &Context) -> Result<(), StoreError> {
        let read: Vec<&str> = context.config.model.modalities.iter().map(|own| own.name.as_str()).collect();
        let question = "select item_id, modality from mp4sr_items cross join unnest($2::text[]) as modality where run = $1 \
                        and not exists (select from mp4sr_features own where own.run = mp4sr_items.run \
                        and own.item_id = mp4sr_items.item_id and own.modality = modality.modality) order by position limit 1";
        if let Some(row) = self.server.answer(transaction.query_opt(question, &[&self.run, &read])).await? {
            let text = |at| self.server.column::<String>(&row, at);
            return Err(StoreError::Refused(generation::no_features(&text(0)?, &text(1)?)));
        }
        let question = "select modality, min(item_id), max(item_id) from \
                        (select distinct on (modality, encoder, width) modality, item_id from mp4sr_features \
                        where run = $1 and modality = any($2)) as one \
                        group by modality having count(*) > 1 order by modality limit 1";
        let Some(row) = self.server.answer(transaction.query_opt(question, &[&self.run, &read])).await? else {
            return Ok(());
        };
        let text = |at| self.server.column::<String>(&row, at);
        Err(StoreError::Refused(generation::two_encoders(&text(0)?, &text(1)?, &text(2)?)))
    }

    /// Marks the items as changed for other replicas, and returns the number of items.
    async fn count_change(&self, transaction: &Transaction<'_>) -> Result<usize, StoreError> {
        let raise = "update mp4sr_runs set change = change + 1 where run = $1";
        self.server.answer(transaction.execute(raise, &[&self.run])).await?;
        Ok(self.count(transaction).await? as usize)
    }

    /// The hash of the dataset for which the items were added, and the items. `seen` is called with the number of the last change before the
    /// items are read.
    fn snapshot(&self, seen: impl Fn(i64)) -> Result<(String, Vec<StoredItem>), StoreError> {
        self.server.with_client(async |client| {
            let reading = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
            let reading = self.server.answer(reading.start()).await?;
            let about = "select change, dataset from mp4sr_runs where run = $1";
            let Some(about) = self.server.answer(reading.query_opt(about, &[&self.run])).await? else {
                seen(0);
                return Ok((String::new(), Vec::new()));
            };
            seen(self.server.column(&about, 0)?);
            let items = "select item_id, texts from mp4sr_items where run = $1 order by position";
            let mut stored = Vec::new();
            let mut indices = HashMap::new();
            for row in self.server.answer(reading.query(items, &[&self.run])).await? {
                let item = self.item(&row)?;
                indices.insert(item.id.clone(), stored.len());
                stored.push(item);
            }
            let features = "select item_id, modality, encoder, width, kind, rows from mp4sr_features where run = $1";
            for row in self.server.answer(reading.query(features, &[&self.run])).await? {
                let Some(&at) = indices.get(&self.server.column::<String>(&row, 0)?) else { continue };
                stored[at].features.push(StoredRows {
                    modality: self.server.column(&row, 1)?,
                    encoder: self.server.column(&row, 2)?,
                    width: self.server.column::<i32>(&row, 3)?.max(0) as usize,
                    kind: self.server.column(&row, 4)?,
                    values: self.server.column(&row, 5)?,
                });
            }
            Ok((self.server.column(&about, 1)?, stored))
        })
    }

    /// An item without its features, from a row with its id and texts.
    fn item(&self, row: &Row) -> Result<StoredItem, StoreError> {
        let (id, texts): (String, String) = (self.server.column(row, 0)?, self.server.column(row, 1)?);
        let texts: ItemTexts = serde_json::from_str(&texts).map_err(|e| {
            StoreError::Refused(format!(
                "the texts of the added item {} in {} are not as they were written ({e}); remove it with `mp4sr items remove` and add it again",
                quoted(&id),
                self.location()
            ))
        })?;
        Ok(StoredItem { id, texts, features: Vec::new(), images: Vec::new() })
    }

    /// Rejects items that were added to a run of the same name on another dataset.
    fn expect_dataset(&self, stored: &str, own: &str, count: i64) -> Result<(), StoreError> {
        if stored == own {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "the {count} items in {} were added to `{}` when its dataset had other items; remove them with `mp4sr items remove` and add them \
             again, or give this run another name",
            self.location(),
            self.run
        )))
    }

    /// Creates the tables if they do not exist, and rejects those of another release.
    async fn make_tables(&self, client: &mut Client) -> Result<(), StoreError> {
        let transaction = self.server.answer(client.transaction()).await?;
        // The lock ensures that of two replicas that start at once only one creates the tables.
        self.server.answer(transaction.execute("select pg_advisory_xact_lock($1)", &[&MAKING_TABLES])).await?;
        let exists =
            self.server.answer(transaction.query_one("select to_regclass('mp4sr_schema') is not null", &[])).await?;
        if !self.server.column::<bool>(&exists, 0)? {
            self.server.answer(transaction.batch_execute(TABLES)).await?;
            return self.server.answer(transaction.commit()).await;
        }
        let version = self.server.answer(transaction.query_one("select max(version) from mp4sr_schema", &[])).await?;
        let version = self.server.column::<Option<i32>>(&version, 0)?.unwrap_or(0);
        if version == SCHEMA {
            return self.server.answer(transaction.commit()).await;
        }
        Err(StoreError::Refused(format!(
            "the tables of added items in {} have version {version}, and this release of mp4sr reads version {SCHEMA}; use the release that wrote \
             them, or another database",
            self.location()
        )))
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

/// The error of removing items that were not added.
fn not_added(ids: &[&str]) -> StoreError {
    StoreError::Refused(format!(
        "these items were not added to the run: {}; remove only items that `mp4sr items list` lists",
        some_of(ids)
    ))
}
