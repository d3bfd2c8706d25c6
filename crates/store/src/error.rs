//! The errors of a store.

use postgres::error::SqlState;

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
    /// PostgreSQL answers, but its content cannot be used, or the request cannot be fulfilled.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether the same request may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Converts an error of the client, which was connected or connecting as `user` to the database `database` at `location`.
    pub(crate) fn of_postgres(error: &postgres::Error, location: &str, user: &str, database: &str) -> Self {
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
            return unavailable(format!("{error}{cause}"), start);
        };
        let (code, message) = (own.code(), own.message());
        let is = |codes: &[&SqlState]| codes.contains(&code);
        if is(&[&SqlState::INVALID_PASSWORD, &SqlState::INVALID_AUTHORIZATION_SPECIFICATION]) {
            let reason = format!("PostgreSQL rejected the password of the user `{user}`");
            return unavailable(reason, "correct the user and the password in `serve.store`");
        }
        if is(&[&SqlState::INVALID_CATALOG_NAME]) {
            let remedy = "create it with `createdb`, or correct `serve.store`";
            return unavailable(format!("the database `{database}` does not exist"), remedy);
        }
        if is(&[&SqlState::INSUFFICIENT_PRIVILEGE]) {
            let remedy = "let the owner of the database run `deploy/store.sql` and grant the tables to this user";
            return unavailable(format!("the user `{user}` lacks a permission ({message})"), remedy);
        }
        if is(&[&SqlState::UNDEFINED_TABLE, &SqlState::UNDEFINED_COLUMN]) {
            let reason = format!("its tables are missing or were changed ({message})");
            return unavailable(reason, "start the service again, which creates missing tables, or restore them");
        }
        if is(&[&SqlState::READ_ONLY_SQL_TRANSACTION]) {
            let remedy = "give the URL of the primary server in `serve.store`";
            return unavailable("this server is a read-only replica".to_owned(), remedy);
        }
        // The server is shutting down, starting up, out of connections or memory, or cut off; or the statement timed out or conflicted with
        // another transaction.
        if ["08", "40", "53", "55", "57"].iter().any(|class| code.code().starts_with(class)) {
            return unavailable(message.to_owned(), start);
        }
        Self::Refused(format!("PostgreSQL at {location} refused the connection or the query: {message}"))
    }
}
