//! The errors of a store.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::WrongType;

/// What to do about tables that are missing or were changed.
const TABLES_REMEDY: &str = "restore the tables of `deploy/store.sql` from a backup; to begin without added items, drop all tables and the \
                             sequence whose names begin with `mp4sr_`, and start the service again, which creates them";

/// The reasons why a store could not be used. No message contains a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `serve.store` is not a valid URL.
    #[error("{0}")]
    Settings(String),
    /// PostgreSQL does not answer, or rejects this user. A later attempt may succeed.
    #[error("the added items in {location} cannot be used: {reason}; {remedy}")]
    Unavailable {
        /// Where PostgreSQL is.
        location: String,
        /// The cause.
        reason: String,
        /// How to fix it.
        remedy: String,
    },
    /// PostgreSQL accepts connections or is connected, and does not answer. A later attempt may succeed.
    #[error(
        "the added items in {location} cannot be used: PostgreSQL has not answered within {} seconds; look at its log and its load, and \
         restart it if it hangs, or correct `serve.store`", limit.as_secs()
    )]
    Silent {
        /// Where PostgreSQL is.
        location: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// PostgreSQL answers, but its content cannot be used, or the request cannot be fulfilled.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether the same request may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Silent { .. })
    }

    /// The addresses of a host cannot be found in time.
    pub(crate) fn unknown_host(location: &str, host: &str) -> Self {
        Self::Unavailable {
            location: location.to_owned(),
            reason: format!("no address of `{host}` was found in time"),
            remedy: "look at the name server of this machine, or correct `serve.store`".to_owned(),
        }
    }

    /// The tables at `location` have other columns than those of this release.
    pub(crate) fn changed_tables(location: &str, error: &tokio_postgres::Error) -> Self {
        let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
        Self::Unavailable {
            location: location.to_owned(),
            reason: format!("its tables were changed ({error}{cause})"),
            remedy: TABLES_REMEDY.to_owned(),
        }
    }

    /// Converts an error of the client, which was connected or connecting as `user` to the database `database` at `location`.
    pub(crate) fn of_postgres(error: &tokio_postgres::Error, location: &str, user: &str, database: &str) -> Self {
        let unavailable = |reason: String, remedy: &str| Self::Unavailable {
            location: location.to_owned(),
            reason,
            remedy: remedy.to_owned(),
        };
        let start = "start PostgreSQL, or correct `serve.store`";
        let Some(own) = error.as_db_error() else {
            let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
            if cause.contains("password missing") {
                let remedy = "give it in `serve.store`; the configuration of a run never contains a password, so use `env:NAME` or \
                              `file:PATH` there";
                return unavailable("PostgreSQL requires a password, but none is given".to_owned(), remedy);
            }
            if std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<WrongType>) {
                return Self::changed_tables(location, error);
            }
            return unavailable(format!("{error}{cause}"), start);
        };
        let (code, message) = (own.code(), own.message());
        let is = |codes: &[&SqlState]| codes.contains(&code);
        if is(&[&SqlState::INVALID_PASSWORD]) {
            let reason = format!("PostgreSQL rejected the password of the user `{user}`");
            return unavailable(reason, "correct the user and the password in `serve.store`");
        }
        if is(&[&SqlState::INVALID_AUTHORIZATION_SPECIFICATION]) {
            let remedy = "allow the user in `pg_hba.conf` and with `LOGIN`, or correct `serve.store`; if the server requires encryption, \
                          add `?sslmode=require`";
            return unavailable(message.to_owned(), remedy);
        }
        if is(&[&SqlState::INVALID_CATALOG_NAME]) {
            let remedy = "create it with `createdb`, or correct `serve.store`";
            return unavailable(format!("the database `{database}` does not exist"), remedy);
        }
        if is(&[&SqlState::INSUFFICIENT_PRIVILEGE]) {
            let remedy = "let the owner of the database run `deploy/store.sql` and grant the tables to this user";
            return unavailable(format!("the user `{user}` lacks a permission ({message})"), remedy);
        }
        if let Some(remedy) = remedy_of(code) {
            return unavailable(message.to_owned(), remedy);
        }
        // The server is shutting down, starting up, or cut off.
        if ["08", "57"].iter().any(|class| code.code().starts_with(class)) {
            return unavailable(message.to_owned(), start);
        }
        let remedy = if is(&[&SqlState::PROGRAM_LIMIT_EXCEEDED]) {
            "give the item a shorter id"
        } else {
            "correct the request or the database; the log of PostgreSQL may say more"
        };
        Self::Refused(format!("{location} refused the connection or the query: {message}; {remedy}"))
    }
}

/// What to do about an error of the server, after which the same request succeeds; `None` for other errors.
fn remedy_of(code: &SqlState) -> Option<&'static str> {
    let is = |codes: &[&SqlState]| codes.contains(&code);
    let in_class = |class: &str| code.code().starts_with(class);
    if is(&[&SqlState::UNDEFINED_TABLE, &SqlState::UNDEFINED_COLUMN, &SqlState::DATATYPE_MISMATCH]) {
        return Some(TABLES_REMEDY);
    }
    if is(&[&SqlState::READ_ONLY_SQL_TRANSACTION]) {
        return Some(
            "give the URL of the primary server in `serve.store`, or set `default_transaction_read_only` of the database or the user to `off`",
        );
    }
    if is(&[&SqlState::QUERY_CANCELED, &SqlState::LOCK_NOT_AVAILABLE]) {
        return Some(
            "if another transaction holds a lock on the tables (`select * from pg_stat_activity`), end it; otherwise look at the load of the \
             server, and try again",
        );
    }
    if is(&[&SqlState::TOO_MANY_CONNECTIONS]) {
        return Some("end other connections, or raise `max_connections`; each service and each command uses one");
    }
    if is(&[&SqlState::DISK_FULL, &SqlState::OUT_OF_MEMORY]) {
        return Some("free disk space or memory on the server of PostgreSQL, and try again");
    }
    if in_class("58") || in_class("XX") {
        return Some("look at the log of PostgreSQL, and repair the server");
    }
    (in_class("40") || in_class("53") || in_class("55")).then_some("try again")
}
