//! Real web servers to stand behind the gateway, each on a free port of loopback and in a process group of its own.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::PATIENCE;

/// A server that runs until this is dropped.
pub struct Partner {
    pub address: SocketAddr,
    processes: Vec<Child>,
    /// Its files; nobody but the server needs them.
    folder: tempfile::TempDir,
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What is missing for a partner: told by name and passed over, and a failure in CI, where nobody would notice.
pub fn skip(name: &str, missing: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{name}: {missing} is missing");
    eprintln!("skipped: {name}: {missing} is missing");
}

/// A program on PATH or where Debian puts servers; the first whose name begins with `name` and goes on with a
/// version at most.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")]);
    for folder in folders {
        let exact = folder.join(name);
        if exact.is_file() {
            return Some(exact);
        }
        let versioned =
            std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).find(
                |path| {
                    let version = path.file_name().and_then(|file| file.to_str()?.strip_prefix(name));
                    version.is_some_and(|rest| {
                        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
                    })
                },
            );
        if versioned.is_some() {
            return versioned;
        }
    }
    None
}

/// A file or folder below the repository, such as what `script/test` installs in `target`.
pub fn in_repository(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    path.exists().then_some(path)
}

/// Whether a request to `address` is answered, and not with an error of the server's.
async fn serves(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    asked.is_ok() && {
        let answer = super::read_to_end(&mut stream).await;
        answer.starts_with("HTTP/1.") && super::status_of(&answer) < 500
    }
}

/// A configuration of `deploy/load-balancers` with other addresses in it. Each `(written, here)` has to be there.
pub fn deployed(file: &str, addresses: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/load-balancers").join(file);
    let mut text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    for (written, here) in addresses {
        assert!(text.contains(written), "{file} does not hold {written}");
        text = text.replace(written, here);
    }
    text
}

impl Partner {
    /// Writes the files of `site` (name, content) into a folder of its own, with those of `configuration`, in
    /// which `PORT` and `FOLDER` are filled in, and runs `commands`, in whose arguments they are, too. Waits until
    /// it serves, whatever stands behind it included.
    pub async fn start(site: &[(&str, &str)], configuration: &[(&str, &str)], commands: &[&[&str]]) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        // A server that is started by root serves as somebody else.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (port, path) = (address.port().to_string(), folder.path().to_str().unwrap().to_owned());
        let fill = |text: &str| text.replace("PORT", &port).replace("FOLDER", &path);
        for (name, content) in site {
            let file = folder.path().join("site").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        for (name, content) in configuration {
            std::fs::write(folder.path().join(name), fill(content)).unwrap();
        }
        let mut partner = Self { address, processes: Vec::new(), folder };
        partner.run(commands).await;
        partner
    }

    /// Runs `commands` as [`Partner::start`] does: once more, after [`Partner::kill`].
    pub async fn run(&mut self, commands: &[&[&str]]) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let (port, path) = (self.address.port().to_string(), self.folder.path().to_str().unwrap().to_owned());
        for command in commands {
            let arguments =
                command[1..].iter().map(|argument| argument.replace("PORT", &port).replace("FOLDER", &path));
            let child = Command::new(command[0])
                .args(arguments)
                .current_dir(self.folder.path().join("site"))
                .env("PHP_CLI_SERVER_WORKERS", "4")
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log.try_clone().unwrap())
                .process_group(0)
                .spawn();
            self.processes.push(child.unwrap_or_else(|error| panic!("{}: {error}", command[0])));
        }
        self.wait().await;
    }

    /// Ends all its processes with SIGKILL; its port is nobody's then.
    pub fn kill(&mut self) {
        for mut process in self.processes.drain(..) {
            // With all that it started.
            let group = format!("-{}", process.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
            let _ = process.wait();
        }
    }

    /// WordPress and its database, as `deploy/wordpress/setup` left them in `target/wordpress`; the data are a
    /// copy. `environment` is what its `wp-config.php` reads besides. The second address is the database's.
    /// `None`: what is missing has been told.
    pub async fn wordpress(environment: &[(&str, &str)]) -> Option<(Self, SocketAddr)> {
        let (Some(php), Some(mariadbd)) = (program("php"), program("mariadbd")) else {
            skip("WordPress", "php or mariadbd");
            return None;
        };
        let Some(site) =
            in_repository("target/wordpress/installed").and_then(|file| file.parent().map(Path::to_owned))
        else {
            skip("WordPress", "target/wordpress, which deploy/wordpress/setup makes,");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-r").arg(site.join("data")).arg(folder.path()).status().unwrap();
        assert!(copied.success(), "the data can be copied");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, database) = (free(), free());
        let within = |name: &str| folder.path().join(name).display().to_string();
        let mut partner = Self { address, processes: Vec::new(), folder: tempfile::tempdir().unwrap() };
        let mut start = |mut command: Command| {
            let command = command.stdin(Stdio::null()).process_group(0);
            let command = command.stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
            partner.processes.push(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
        };
        let mut server = Command::new(mariadbd);
        server
            .args(["--no-defaults", "--bind-address=127.0.0.1", "--innodb-log-file-size=8M", "--user=root"])
            .arg(format!("--datadir={}", within("data")))
            .arg(format!("--socket={}", within("s")))
            .arg(format!("--pid-file={}", within("pid")))
            .arg(format!("--port={}", database.port()));
        start(server);
        let mut server = Command::new(php);
        server
            .args(["-d", "display_errors=stderr", "-S", &address.to_string(), "-t"])
            .args([site.join("wp"), site.join("router.php")])
            .env("PHP_CLI_SERVER_WORKERS", "4")
            .env("WORDPRESS_DB_HOST", database.to_string())
            .envs(environment.iter().copied());
        start(server);
        partner.folder = folder;
        partner.wait().await;
        Some((partner, database))
    }

    /// Waits until it serves, whatever stands behind it included.
    async fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !serves(self.address).await {
            let ended = self.processes.iter_mut().any(|process| process.try_wait().unwrap().is_some());
            assert!(!ended && Instant::now() < deadline, "it does not serve: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}
