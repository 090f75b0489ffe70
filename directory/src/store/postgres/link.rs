//! One connection to PostgreSQL, and its return after a loss. The runtime belongs to the link and turns only while a call waits, on the
//! thread that makes the call: no thread is needed besides the store's own, and none behind the system-call filter.
//!
//! What is asked goes as a prepared statement with its values apart from it, never as text.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::schema;
use super::target::Target;
use crate::error::{Error, Result};

/// A server on the same network answers in milliseconds; whoever registers waits this long at the most for a new connection.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// One statement. A purge of a thousand rows takes a hundredth of it; past it the connection counts as lost.
const STATEMENT_TIME: Duration = Duration::from_secs(10);
/// One statement that changes the schema, of a database of any size.
const SCHEMA_TIME: Duration = Duration::from_secs(86_400);
/// What a directory that is alone holds, and no replica beside it; and a replica, beside its own name, with others.
const HOLD_ALONE: &str = "SELECT pg_try_advisory_lock(hashtext('openred-directory run'), hashtext($1))";
const HOLD_BESIDE: &str = "SELECT pg_try_advisory_lock(hashtext('openred-directory run'), hashtext($1))
    AND pg_try_advisory_lock_shared(hashtext('openred-directory run'), hashtext(''))";
/// The connection of a directory that was killed, or whose machine is gone, ends within this.
const NAME_TIME: Duration = Duration::from_secs(12);
/// So long the server may take to end a connection of ours from before.
const AGAIN_TIME: Duration = Duration::from_millis(500);
/// The first pause after a failed attempt; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Values of a statement.
pub(super) type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The connection.
pub(in crate::store) struct Link {
    runtime: Runtime,
    target: Target,
    /// Whether a lost connection comes back only to a schema that is this program's.
    checked: bool,
    /// Whether a statement has as long as it takes.
    patient: bool,
    /// Whether a commit waits for the server's disk.
    durable: bool,
    /// The name that this run holds, once it does, and which of the server's processes holds it.
    name: Option<(String, i32)>,
    client: Option<Client>,
    statements: HashMap<String, Statement>,
    /// No attempt before then, and how long the pause after the next failure is.
    pause: Option<(Instant, Duration)>,
}

impl Link {
    /// A link that has not connected yet.
    ///
    /// # Errors
    /// No runtime could be built.
    pub(super) fn new(target: &Target) -> Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build().map_err(Error::LocalRuntime)?;
        let (target, statements) = (target.clone(), HashMap::new());
        Ok(Self {
            runtime,
            target,
            checked: true,
            patient: false,
            durable: true,
            name: None,
            client: None,
            statements,
            pause: None,
        })
    }

    /// Does not ask for the schema: for who makes it.
    pub(super) fn unchecked(mut self) -> Self {
        self.checked = false;
        self
    }

    /// Does not wait for the server's disk: for what may be lost with the server's last moments.
    pub(super) fn not_durable(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Connects, unless it is connected.
    ///
    /// # Errors
    /// [`Error::LocalStoreAway`]; at the first connection, what is wrong with the server or its database.
    pub(super) fn connect(&mut self) -> Result<()> {
        if self.client.is_some() {
            // Takes in whether the server has closed the connection since the last call.
            self.runtime.block_on(async {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            });
        }
        if self.client.as_ref().is_some_and(|client| !client.is_closed()) {
            return Ok(());
        }
        self.forget();
        if let Some((until, _)) = self.pause
            && Instant::now() < until
        {
            return Err(Error::LocalStoreAway);
        }
        match self.attempt() {
            Ok(()) => {
                if self.pause.take().is_some() {
                    tracing::info!("the database is back");
                }
                Ok(())
            }
            Err(error) => {
                self.forget();
                let length = self.pause.map_or(FIRST_PAUSE, |(_, length)| (length * 2).min(LONGEST_PAUSE));
                self.pause = Some((Instant::now() + jittered(length), length));
                tracing::warn!(%error, "the database cannot be had");
                Err(error)
            }
        }
    }

    fn attempt(&mut self) -> Result<()> {
        let (config, tls) = (self.target.config.clone(), self.target.tls.clone());
        let connecting = async move {
            match tls {
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    // It ends with the client or the socket, and the client tells.
                    tokio::spawn(async move { drop(connection.await) });
                    Ok(client)
                }
                Some(tls) => {
                    let (client, connection) = config.connect(MakeRustlsConnect::new((*tls).clone())).await?;
                    tokio::spawn(async move { drop(connection.await) });
                    Ok(client)
                }
            }
        };
        let connected = self.runtime.block_on(async { tokio::time::timeout(CONNECT_TIME, connecting).await });
        let client = connected.map_err(|_| Error::LocalStoreAway)?.map_err(refused)?;
        self.client = Some(client);
        schema::begin_session(self)?;
        if !self.durable {
            self.batch("SET synchronous_commit = off")?;
        }
        if !self.checked {
            return Ok(());
        }
        schema::check(self)?;
        self.hold_again()
    }

    /// Statements have as long as they take from now on, or no longer: an index over ten million rows takes minutes.
    pub(super) fn be_patient(&mut self, patient: bool) {
        self.patient = patient;
    }

    /// Makes sure that no other directory runs on this database under this name, nor any beside one that is alone (its name is empty), for as
    /// long as the connection stands. One that has just ended is waited for.
    ///
    /// # Errors
    /// There is one, or the server's.
    pub(super) fn hold_name(&mut self, name: &str) -> Result<()> {
        let since = Instant::now();
        while !self.try_hold(name)? {
            if since.elapsed() >= NAME_TIME {
                return Err(Error::LocalStoreUnfit {
                    why: "another directory runs on it under this one's name, or one of the two without [replicas]: end that one, or, where both are replicas, give each its own (replicas.name); the connection of a machine that was lost ends within some ten seconds: start again",
                });
            }
            std::thread::sleep(FIRST_PAUSE);
        }
        self.note_holder(name.to_owned())
    }

    /// Makes sure that no directory runs on this database: one of an older version would find columns gone. One that has just ended is waited for.
    ///
    /// # Errors
    /// There is one, or the server's.
    pub(super) fn wait_until_unused(&mut self) -> Result<()> {
        let since = Instant::now();
        let used =
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
            AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
            AND classid = hashtext('openred-directory run')::oid)";
        while self.holds(used, &[])? {
            if since.elapsed() >= NAME_TIME {
                return Err(Error::LocalStoreUnfit {
                    why: "this version changes its schema, and directories of another version run on it: end all of them, then start this one",
                });
            }
            std::thread::sleep(FIRST_PAUSE);
        }
        Ok(())
    }

    /// Holds the name again after a loss. Its own connection from before may hold it still, and is ended; where another run holds it, this one
    /// has been replaced and writes no more.
    fn hold_again(&mut self) -> Result<()> {
        let Some((name, before)) = self.name.clone() else { return Ok(()) };
        let since = Instant::now();
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
            AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
            AND classid = hashtext('openred-directory run')::oid AND objid = hashtext($1)::oid AND pid = $2";
        self.rows(ended, &[&name, &before])?;
        while !self.try_hold(&name)? {
            if since.elapsed() >= AGAIN_TIME {
                tracing::error!(
                    name,
                    "another directory runs on the database under this one's name, or one of the two without [replicas]: this one writes no more while it does"
                );
                return Err(Error::LocalStoreAway);
            }
            std::thread::sleep(FIRST_PAUSE);
        }
        self.note_holder(name)
    }

    fn note_holder(&mut self, name: String) -> Result<()> {
        let row = self.row("SELECT pg_backend_pid()", &[])?;
        self.name = Some((name, row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default()));
        Ok(())
    }

    fn try_hold(&mut self, name: &str) -> Result<bool> {
        self.holds(if name.is_empty() { HOLD_ALONE } else { HOLD_BESIDE }, &[&name])
    }

    fn statement_time(&self) -> Duration {
        if self.patient { SCHEMA_TIME } else { STATEMENT_TIME }
    }

    /// Lets the connection go: whatever it had begun and not made durable is rolled back by the server.
    pub(super) fn forget(&mut self) {
        self.client = None;
        self.statements.clear();
    }

    /// Statements without values: the schema's, and those around a transaction.
    pub(super) fn batch(&mut self, sql: &str) -> Result<()> {
        let time = self.statement_time();
        let Some(client) = &self.client else { return Err(Error::LocalStoreAway) };
        let done = self.runtime.block_on(async { tokio::time::timeout(time, client.batch_execute(sql)).await });
        self.settle(done)
    }

    /// Rows of a statement.
    pub(super) fn rows(&mut self, sql: &str, values: Values<'_>) -> Result<Vec<Row>> {
        let time = self.statement_time();
        let statement = self.prepared(sql)?;
        let Some(client) = &self.client else { return Err(Error::LocalStoreAway) };
        let asked = async { tokio::time::timeout(time, client.query(&statement, values)).await };
        let done = self.runtime.block_on(asked);
        self.settle(done)
    }

    /// The one row of a statement, if there is one.
    pub(super) fn row(&mut self, sql: &str, values: Values<'_>) -> Result<Option<Row>> {
        Ok(self.rows(sql, values)?.into_iter().next())
    }

    /// The first column of the one row: a number that is none below zero.
    pub(super) fn number(&mut self, sql: &str, values: Values<'_>) -> Result<u64> {
        let row = self.row(sql, values)?;
        let number: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
        Ok(super::unsigned(number.unwrap_or(0)))
    }

    /// The first column of the one row: whether.
    pub(super) fn holds(&mut self, sql: &str, values: Values<'_>) -> Result<bool> {
        let row = self.row(sql, values)?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }

    /// Rows that a statement changed.
    pub(super) fn execute(&mut self, sql: &str, values: Values<'_>) -> Result<u64> {
        let time = self.statement_time();
        let statement = self.prepared(sql)?;
        let Some(client) = &self.client else { return Err(Error::LocalStoreAway) };
        let asked = async { tokio::time::timeout(time, client.execute(&statement, values)).await };
        let done = self.runtime.block_on(asked);
        self.settle(done)
    }

    fn prepared(&mut self, sql: &str) -> Result<Statement> {
        let time = self.statement_time();
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let Some(client) = &self.client else { return Err(Error::LocalStoreAway) };
        let done = self.runtime.block_on(async { tokio::time::timeout(time, client.prepare(sql)).await });
        let statement = self.settle(done)?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// A connection that is silent or closed is let go: what comes late on it would pass for the answer to something else.
    fn settle<T>(
        &mut self,
        done: std::result::Result<std::result::Result<T, tokio_postgres::Error>, tokio::time::error::Elapsed>,
    ) -> Result<T> {
        let error = match done {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Error::from(error),
            Err(_) => Error::LocalStoreAway,
        };
        if matches!(error, Error::LocalStoreAway) {
            self.forget();
        }
        Err(error)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The last word to the server, so that it need not find out by itself.
        self.client = None;
        self.runtime.block_on(tokio::task::yield_now());
    }
}

/// A pause between half of it and the whole: replicas that lost the same server do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}

/// Why no connection came about: the server's own words name no password.
fn refused(error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) if *said.code() == SqlState::CANNOT_CONNECT_NOW => Error::LocalStoreAway,
        Some(_) => Error::LocalPostgres(Box::new(error)),
        None => {
            // The refusal of a certificate, the system's of a connection.
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            tracing::warn!(cause, "no connection to the database");
            Error::from(error)
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else {
            // Without a word of the server: the socket's, or a row that is not of our types.
            let typed =
                std::error::Error::source(&error).is_some_and(|source| source.is::<tokio_postgres::types::WrongType>());
            return if typed { Error::LocalPostgres(Box::new(error)) } else { Error::LocalStoreAway };
        };
        match said.code() {
            &SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE => {
                Error::LocalStoreBusy
            }
            &SqlState::DISK_FULL | &SqlState::OUT_OF_MEMORY => Error::LocalStoreFull,
            // It was told to end, or ends: the next connection finds it again.
            &SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN | &SqlState::CANNOT_CONNECT_NOW => {
                Error::LocalStoreAway
            }
            _ => Error::LocalPostgres(Box::new(error)),
        }
    }
}
