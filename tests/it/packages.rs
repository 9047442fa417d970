//! What the gateway is installed from: the systemd unit, the Debian package, the container's files.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::harness::partners::{in_repository, program, skip};
use crate::harness::{Call, PATIENCE, Upstream, binary};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// The binary without what only a debugger wants, which is two thirds of it.
fn stripped(folder: &Path) -> Option<PathBuf> {
    let Some(strip) = program("strip") else {
        skip("packages", "strip");
        return None;
    };
    let copy = folder.join("portcullis-stripped");
    let status = Command::new(strip).arg("-o").arg(&copy).arg(binary()).status().unwrap();
    assert!(status.success());
    Some(copy)
}

#[test]
fn the_unit_is_valid_and_exposes_little() {
    let Some(analyze) = program("systemd-analyze") else { return skip("the unit", "systemd-analyze") };
    let unit = fs::read_to_string(root().join("deploy/systemd/portcullis.service")).unwrap();
    // It looks for what is to be run and to be read; here that is this binary.
    let folder = tempfile::tempdir().unwrap();
    let here = unit.replace("/usr/bin/portcullis", binary()).replace("Documentation=man:portcullis(1)\n", "");
    let file = folder.path().join("portcullis.service");
    fs::write(&file, here).unwrap();
    let output = Command::new(&analyze).arg("verify").arg(&file).output().unwrap();
    let told = text(&output.stderr);
    assert!(output.status.success() && !told.contains("portcullis.service"), "{told}");
    // `--threshold` counts in tenths and fails above it.
    let output = Command::new(&analyze)
        .args(["security", "--offline=true", "--no-pager", "--threshold=19"])
        .arg(&file)
        .output()
        .unwrap();
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}{told}", text(&output.stderr));
    assert!(told.contains("Overall exposure level"), "{told}");
}

#[test]
fn the_unit_stops_later_than_the_gateway_does() {
    let unit = fs::read_to_string(root().join("deploy/systemd/portcullis.service")).unwrap();
    let stops: u64 = unit
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s'))
        .unwrap()
        .parse()
        .unwrap();
    let schema = portcullis::config::json_schema();
    let timeout = schema.to_string();
    assert!(
        timeout.contains("\"25s\"") && stops > 25,
        "shutdown.timeout is 25s by default, the unit waits {stops}"
    );
}

/// Runs a script in a copy of this system that is gone afterwards: an overlay in a mount namespace of its own.
fn in_a_copy_of_this_system(folder: &Path, script: &str) -> Output {
    let layers = folder.join("layers");
    fs::create_dir(&layers).unwrap();
    let prepare = "set -eu\n\
        mount -t tmpfs tmpfs \"$1\" && mkdir \"$1/upper\" \"$1/work\" \"$1/root\"\n\
        mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/upper,workdir=$1/work\" \"$1/root\"\n\
        mount -t proc proc \"$1/root/proc\" && mount --rbind /dev \"$1/root/dev\"\n\
        cp \"$2\" \"$1/root/portcullis.deb\"\n\
        exec chroot \"$1/root\" sh -euxc \"$3\"\n";
    Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", prepare, "sh"])
        .args([layers.as_os_str(), folder.join("portcullis.deb").as_os_str(), script.as_ref()])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What somebody does who installs the package: everything that needs no running systemd.
const INSTALLED: &str = r#"
dpkg -i /portcullis.deb
portcullis --version
man -w portcullis-user-add || ls /usr/share/man/man1/portcullis-user-add.1.gz
test -s /usr/share/bash-completion/completions/portcullis
portcullis check --config /etc/portcullis/gateway.yaml
systemctl --root=/ enable portcullis
systemctl --root=/ is-enabled portcullis

# As the unit would: a folder of a user who is none, and the gateway as that user without any right of root's.
mkdir -p /var/lib/portcullis && chown 61184:61184 /var/lib/portcullis && chmod 0700 /var/lib/portcullis
sed -i 's/^listen: .*/listen: 127.0.0.1:0/; s/^admin: .*/admin: 127.0.0.1:ADMIN/' /etc/portcullis/gateway.yaml
# Before the first start, by root: what is made belongs to the service all the same.
echo 'correct horse battery' | portcullis user add vera --role Viewer --password-stdin --config /etc/portcullis/gateway.yaml
setpriv --reuid 61184 --regid 61184 --clear-groups --bounding-set=-all --no-new-privs \
    portcullis serve --config /etc/portcullis/gateway.yaml 2>/tmp/log &
tries=0
until portcullis health --config /etc/portcullis/gateway.yaml; do
    tries=$((tries + 1))
    test $tries -lt 300 || { cat /tmp/log; exit 1; }
    sleep 0.1
done
portcullis user disable vera --config /etc/portcullis/gateway.yaml
kill -TERM $!
kill -TERM $! || true
wait $! || true
test "$(stat -c %u /var/lib/portcullis/portcullis.db)" = 61184

# A change of the operator's survives an upgrade and a removal, and goes with a purge.
echo '# mine' >> /etc/portcullis/gateway.yaml
dpkg --force-confold -i /portcullis.deb
grep -q '# mine' /etc/portcullis/gateway.yaml
dpkg -r portcullis
test -s /etc/portcullis/gateway.yaml
dpkg -P portcullis
test ! -e /etc/portcullis/gateway.yaml && test ! -e /usr/bin/portcullis
# Users are not a package's to remove.
test -s /var/lib/portcullis/portcullis.db
echo all of it
"#;

#[test]
fn the_debian_package_installs_runs_upgrades_and_goes() {
    let installed = in_repository("target/tools/bin/cargo-deb").or_else(|| program("cargo-deb"));
    if installed.is_none() {
        return skip("the Debian package", "cargo-deb");
    }
    for tool in ["dpkg", "dpkg-shlibdeps", "setpriv", "unshare", "systemctl"] {
        if program(tool).is_none() {
            return skip("the Debian package", tool);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(stripped) = stripped(folder.path()) else { return };
    let package = folder.path().join("portcullis.deb");
    let output = Command::new(root().join("script/package"))
        .args(["--fast", "--binary"])
        .arg(stripped)
        .arg("--output")
        .arg(&package)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = text(&Command::new("dpkg-deb").arg("-c").arg(&package).output().unwrap().stdout);
    for file in [
        "./usr/bin/portcullis",
        "./usr/lib/systemd/system/portcullis.service",
        "./etc/portcullis/gateway.yaml",
        "./usr/share/man/man1/portcullis.1.gz",
        "./usr/share/zsh/vendor-completions/_portcullis",
        "./usr/share/doc/portcullis/copyright",
    ] {
        assert!(listed.lines().any(|line| line.ends_with(file)), "{file} is not among\n{listed}");
    }
    if !is_root() {
        println!("skipped: only root can install a package");
        return;
    }
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let output = in_a_copy_of_this_system(folder.path(), &INSTALLED.replace("ADMIN", &admin));
    let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && told.contains("\nall of it"), "{told}");
}

#[tokio::test]
async fn the_container_needs_no_other_file_than_those_of_its_last_stage() {
    if !is_root() {
        println!("skipped: only root can change the root folder");
        return;
    }
    let upstream = Upstream::start().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(stripped) = stripped(folder.path()) else { return };
    let inside = folder.path().join("rootfs");
    let output = Command::new(root().join("script/rootfs")).arg(stripped).arg(&inside).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let files = Command::new("find").arg(&inside).args(["-type", "f"]).output().unwrap();
    assert!(text(&files.stdout).lines().count() < 12, "{}", text(&files.stdout));
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, admin) = (free(), free());
    fs::write(
        inside.join("etc/portcullis/gateway.yaml"),
        format!(
            "listen: {listen}\nadmin: {admin}\nupstream: http://{}\nstate: /var/lib/portcullis\nroles: [Viewer]\n\
             rules: [{{ path: /*, allow: public }}]\nshutdown: {{ drain: 0s, timeout: 5s }}\n",
            upstream.address
        ),
    )
    .unwrap();
    let file = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let last = file.rsplit("\nFROM ").next().unwrap();
    assert!(last.starts_with("scratch\nCOPY --from=build /rootfs /\nUSER 65532:65532\n"), "{last}");
    let list = |word: &str| -> Vec<String> {
        let line = last.lines().find_map(|line| line.strip_prefix(word)).unwrap();
        serde_json::from_str(line).unwrap()
    };
    // The one that stands on a line of its own, below HEALTHCHECK.
    let health = list("    CMD ");
    let chroot = program("chroot").expect("every Debian has it");
    // As the container's runtime does it, with the commands of the file.
    let command = |words: &[String]| {
        let mut command = Command::new(&chroot);
        command.arg("--userspec=65532:65532").arg(&inside).args(words).env_clear();
        command
    };
    let mut child =
        command(&[list("ENTRYPOINT "), list("CMD ")].concat()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = command(&health).output().unwrap();
        if output.status.success() {
            break;
        }
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{}", text(&output.stderr));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(Call::new(listen, "GET", "/").send().await.text(), "upstream");
    child.kill().unwrap();
    child.wait().unwrap();
    // And the check says so when nobody is there.
    assert_eq!(command(&health).output().unwrap().status.code(), Some(1));
}

#[test]
fn the_first_stage_of_the_container_copies_everything_that_is_compiled_in() {
    let file = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for line in
        file.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--"))
    {
        let words: Vec<_> = line.split_whitespace().collect();
        let (to, from) = words.split_last().unwrap();
        for name in from {
            let to =
                if to.ends_with('/') { folder.path().join(to).join(name) } else { folder.path().join(to) };
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let status = Command::new("cp").arg("-r").arg(root().join(name)).arg(to).status().unwrap();
            assert!(status.success(), "{name}");
        }
    }
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version=1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    // What `include_str!` names, but for the tests' own rows.
    let mut files = vec![folder.path().join("src")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if path.ends_with("tests.rs") || path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for name in code.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(path.parent().unwrap().join(name).is_file(), "{}: {name} is not copied", path.display());
        }
    }
}

#[test]
fn the_compose_file_leads_to_wordpress_through_the_gateway_alone() {
    let folder = root().join("deploy/compose");
    let file: serde_json::Value =
        serde_yaml::from_str(&fs::read_to_string(folder.join("compose.yaml")).unwrap()).unwrap();
    let services = file["services"].as_object().unwrap();
    for (name, service) in services {
        let is_gateway = name == "portcullis";
        assert_eq!(service["ports"].is_array(), is_gateway, "{name}");
        for network in service["networks"].as_array().unwrap() {
            let network = network.as_str().unwrap();
            let internal = file["networks"][network]["internal"] == true;
            assert!(internal || (is_gateway && network == "public"), "{name} is on {network}");
        }
    }
    let shared = |one: &str, other: &str| {
        let of = |name: &str| services[name]["networks"].as_array().unwrap().clone();
        of(one).iter().any(|network| of(other).contains(network))
    };
    assert!(shared("portcullis", "wordpress") && !shared("portcullis", "database"));
    let gateway = fs::read_to_string(folder.join("config/gateway.yaml")).unwrap();
    let mine = tempfile::tempdir().unwrap();
    fs::write(mine.path().join("gateway-secret"), "0123456789abcdef").unwrap();
    let gateway =
        gateway.replace("/run/secrets/gateway-secret", mine.path().join("gateway-secret").to_str().unwrap());
    fs::File::create(mine.path().join("gateway.yaml")).unwrap().write_all(gateway.as_bytes()).unwrap();
    let output = crate::harness::run(mine.path(), &["check"], "");
    let told = text(&output.stdout);
    assert!(output.status.success() && !told.contains("error"), "{told}");
}
