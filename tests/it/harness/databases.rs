//! Real databases with the users of a CMS in them, each in a folder of its own, on a free port of loopback.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};

use super::PATIENCE;
use super::partners::{program, skip};

/// Which database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Sqlite,
    Postgres,
    MariaDb,
}

/// A database that runs until this is dropped. `owner` owns everything in it; `gateway` has what was granted.
pub struct Database {
    pub kind: Kind,
    address: SocketAddr,
    server: Option<Child>,
    folder: tempfile::TempDir,
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.stop();
        }
    }
}

/// Debian keeps PostgreSQL's programs out of the path.
fn postgres(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.is_file()).collect();
    found.sort();
    found.pop().or_else(|| program(name))
}

/// PostgreSQL does not run as root: there it runs as nobody.
fn as_somebody(program: &std::path::Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

fn quietly(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Database {
    /// `None`, said by name, where it is not installed.
    pub async fn start(kind: Kind) -> Option<Database> {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut database = Database { kind, address, server: None, folder };
        match kind {
            Kind::Sqlite => std::fs::write(database.file(), "").unwrap(),
            Kind::Postgres => {
                let Some(initdb) = postgres("initdb") else {
                    skip("PostgreSQL", "initdb (Debian: postgresql)");
                    return None;
                };
                if is_root() {
                    std::os::unix::fs::chown(database.folder.path(), Some(65534), Some(65534)).unwrap();
                }
                let data = database.folder.path().join("data");
                quietly(
                    as_somebody(&initdb)
                        .args([
                            "--username=owner",
                            "--auth=trust",
                            "--no-sync",
                            "--encoding=UTF8",
                            "--locale=C",
                        ])
                        .arg("-D")
                        .arg(data)
                        .current_dir("/"),
                );
            }
            Kind::MariaDb => {
                let (Some(install), Some(_)) = (program("mariadb-install-db"), program("mariadbd")) else {
                    skip("MariaDB", "mariadbd (Debian: mariadb-server-core)");
                    return None;
                };
                quietly(
                    Command::new(install)
                        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
                        .arg(format!("--datadir={}", database.folder.path().join("data").display()))
                        .args(is_root().then_some("--user=root")),
                );
            }
        }
        database.run_server().await;
        match kind {
            Kind::Sqlite => {}
            Kind::Postgres => {
                database.execute("CREATE ROLE gateway LOGIN PASSWORD 's3cret-of-the-gateway'").await;
            }
            Kind::MariaDb => {
                // To the server, since there is no database to connect to.
                let mut connection = database.mysql_root().connect().await.unwrap();
                for sql in [
                    "CREATE DATABASE cms CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
                    "CREATE USER gateway@'127.0.0.1' IDENTIFIED BY 's3cret-of-the-gateway'",
                ] {
                    connection.execute(sql).await.unwrap();
                }
            }
        }
        Some(database)
    }

    async fn run_server(&mut self) {
        let data = self.folder.path().join("data");
        let port = self.address.port().to_string();
        let mut command = match self.kind {
            Kind::Sqlite => return,
            Kind::Postgres => {
                let mut command = as_somebody(&postgres("postgres").unwrap());
                command.arg("-D").arg(&data).args(["-p", &port, "-k", "", "-F"]);
                command.args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=30"]);
                command
            }
            Kind::MariaDb => {
                let mut command = Command::new(program("mariadbd").unwrap());
                command
                    .arg("--no-defaults")
                    .arg(format!("--datadir={}", data.display()))
                    .arg(format!("--socket={}", self.folder.path().join("s").display()))
                    .arg(format!("--pid-file={}", self.folder.path().join("pid").display()))
                    .args([
                        "--bind-address=127.0.0.1",
                        "--skip-name-resolve",
                        "--innodb-flush-log-at-trx-commit=0",
                    ])
                    .arg(format!("--port={port}"))
                    .args(is_root().then_some("--user=root"));
                command
            }
        };
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn();
        self.server = Some(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
        let deadline = Instant::now() + PATIENCE;
        while !self.answers().await {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{:?} does not start: {}", self.kind, log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn answers(&self) -> bool {
        match self.kind {
            Kind::Sqlite => true,
            Kind::Postgres => postgres_options(&self.owner_url()).connect().await.is_ok(),
            Kind::MariaDb => self.mysql_root().connect().await.is_ok(),
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("cms.db")
    }

    fn owner_url(&self) -> String {
        match self.kind {
            Kind::Sqlite => format!("sqlite:{}", self.file().display()),
            Kind::Postgres => format!("postgres://owner@{}/postgres?sslmode=disable", self.address),
            Kind::MariaDb => {
                format!("mysql://root@localhost/cms?socket={}", self.folder.path().join("s").display())
            }
        }
    }

    /// By its socket, where root needs no password.
    fn mysql_root(&self) -> MySqlConnectOptions {
        MySqlConnectOptions::new().username("root").socket(self.folder.path().join("s"))
    }

    /// As the gateway's file has it, with a database user who may SELECT what was granted. An SQLite file has no users.
    pub fn url(&self) -> String {
        let user = "gateway:s3cret-of-the-gateway@";
        match self.kind {
            Kind::Sqlite => self.owner_url(),
            Kind::Postgres => format!("postgres://{user}{}/postgres?sslmode=disable", self.address),
            Kind::MariaDb => format!("mysql://{user}{}/cms?ssl-mode=DISABLED", self.address),
        }
    }

    /// As [`Database::url`], of a user who may do everything, so that only the session can keep it from writing.
    pub fn url_of_the_owner(&self) -> String {
        self.owner_url()
    }

    /// Runs statements of the CMS's own, separated by `;` and a line break.
    pub async fn execute(&self, sql: &str) {
        let statements: Vec<String> =
            sql.split(";\n").map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect();
        macro_rules! run {
            ($options:expr) => {{
                let mut connection = $options.connect().await.unwrap();
                for one in statements {
                    let told = one.clone();
                    let done = sqlx::raw_sql(AssertSqlSafe(one)).execute(&mut connection).await;
                    done.unwrap_or_else(|error| panic!("{told}: {error}"));
                }
                connection.close().await.unwrap();
            }};
        }
        match self.kind {
            Kind::Sqlite => run!(SqliteConnectOptions::new().filename(self.file())),
            Kind::Postgres => run!(postgres_options(&self.owner_url())),
            Kind::MariaDb => run!(self.mysql_root().database("cms")),
        }
    }

    /// Stops the server at once.
    pub fn stop(&mut self) {
        // PostgreSQL's immediate shutdown: its processes end by themselves, and would linger after a KILL.
        self.signal(if self.kind == Kind::Postgres { "QUIT" } else { "KILL" });
        if let Some(mut server) = self.server.take() {
            server.wait().unwrap();
        }
    }

    /// Starts it again, on the same port.
    pub async fn start_again(&mut self) {
        self.run_server().await;
    }

    fn signal(&self, name: &str) {
        if let Some(server) = &self.server {
            let _ = Command::new("kill").args([&format!("-{name}"), &server.id().to_string()]).status();
        }
    }

    /// Holds the table `users`, so that nobody else can read it, while `work` goes on.
    pub async fn while_locked(&self, work: impl Future<Output = ()>) {
        macro_rules! lock {
            ($options:expr, $lock:expr) => {{
                let mut holder = $options.connect().await.unwrap();
                sqlx::raw_sql($lock).execute(&mut holder).await.unwrap();
                work.await;
                // The lock goes with its holder.
                holder.close().await.unwrap();
            }};
        }
        match self.kind {
            Kind::Sqlite => lock!(SqliteConnectOptions::new().filename(self.file()), "BEGIN EXCLUSIVE"),
            Kind::Postgres => {
                lock!(postgres_options(&self.owner_url()), "BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            }
            Kind::MariaDb => lock!(self.mysql_root().database("cms"), "LOCK TABLES users WRITE"),
        }
    }
}

fn postgres_options(url: &str) -> PgConnectOptions {
    url.parse().unwrap()
}
