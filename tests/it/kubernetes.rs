//! deploy/kubernetes: it renders, it is what the API takes, and the gateway runs on what Kubernetes mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::partners::{in_repository, program, skip};
use crate::harness::{PATIENCE, binary, run};

/// Whom the pods run as.
const UID: u32 = 65532;

/// What can be rendered by itself; the others are components.
const BASES: [&str; 4] = ["standalone", "replicas", "forward-auth", "example-sidecar"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes")
}

/// The resources of a base, as kubectl renders them.
fn rendered(base: &str) -> Option<Vec<Value>> {
    let Some(kubectl) = program("kubectl") else {
        skip("kustomize", "kubectl");
        return None;
    };
    let output = Command::new(kubectl).arg("kustomize").arg(folder().join(base)).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !told.to_lowercase().contains("deprecated"), "{base}: {told}");
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.split("\n---\n").map(|one| serde_yaml::from_str(one).unwrap()).collect())
}

/// What is wrong with resources by the API's own schema, as kubernetes-validate has it.
fn validate(name: &str, resources: &[Value]) {
    let Some(program) = in_repository("target/kubernetes/bin/kubernetes-validate") else {
        return skip(name, "kubernetes-validate");
    };
    // Kinds of others, whose schemas it does not have.
    let known = |one: &&Value| {
        !matches!(one["kind"].as_str(), Some("ServiceMonitor" | "Middleware" | "IngressRoute"))
    };
    let list: Vec<String> = resources.iter().filter(known).map(Value::to_string).collect();
    assert!(!list.is_empty());
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(file.path(), list.join("\n---\n")).unwrap();
    let output = Command::new(program).args(["--strict", "--no-warn"]).arg(file.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {told}");
    assert_eq!(told.matches(" passed ").count(), list.len(), "{name}: {told}");
}

/// The pods' templates, with the name of what they belong to.
fn pods(resources: &[Value]) -> Vec<(&str, &Value)> {
    let of = |one: &'static str| move |resource: &&Value| resource["kind"] == one;
    let deployments = resources.iter().filter(of("Deployment"));
    deployments.map(|one| (one["metadata"]["name"].as_str().unwrap(), &one["spec"]["template"])).collect()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether a selector picks a pod.
fn picks(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
}

/// A duration of gateway.yaml in seconds.
fn seconds(text: &str) -> u64 {
    text.strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn every_base_renders_to_what_the_api_takes_and_every_name_in_it_leads_somewhere() {
    for base in BASES {
        let Some(resources) = rendered(base) else { return };
        validate(base, &resources);
        let named = |kind: &str| -> BTreeSet<&str> {
            let of_kind = resources.iter().filter(|one| one["kind"] == kind);
            of_kind.map(|one| one["metadata"]["name"].as_str().unwrap()).collect()
        };
        let pods = pods(&resources);
        for (name, pod) in &pods {
            for volume in array(&pod["spec"]["volumes"]) {
                if let Some(map) = volume["configMap"]["name"].as_str() {
                    assert!(named("ConfigMap").contains(map), "{base}: {name} mounts {map}");
                }
                if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                    assert!(named("PersistentVolumeClaim").contains(claim), "{base}: {name} claims {claim}");
                }
                if let Some(secret) = volume["secret"]["secretName"].as_str() {
                    // Made by hand: docs/kubernetes.md says how.
                    let guide = fs::read_to_string(folder().join("../../docs/kubernetes.md")).unwrap();
                    assert!(guide.contains(&format!("create secret generic {secret} ")), "{secret}");
                    assert_eq!(volume["secret"]["defaultMode"], 0o440, "{base}: {name}: {secret}");
                }
            }
        }
        for service in resources.iter().filter(|one| one["kind"] == "Service") {
            let name = &service["metadata"]["name"];
            let mut behind = pods
                .iter()
                .filter(|(_, pod)| picks(&service["spec"]["selector"], &pod["metadata"]["labels"]));
            // A CMS that is somebody else's is not here.
            let (_, pod) = behind.next().unwrap_or_else(|| panic!("{base}: nobody is behind {name}"));
            let ports: Vec<_> = array(&pod["spec"]["containers"])
                .flat_map(|one| array(&one["ports"]))
                .map(|port| &port["name"])
                .collect();
            for port in array(&service["spec"]["ports"]) {
                assert!(ports.contains(&&port["targetPort"]), "{base}: {name} leads to {port}");
            }
        }
        for scaler in resources.iter().filter(|one| one["kind"] == "HorizontalPodAutoscaler") {
            let target = scaler["spec"]["scaleTargetRef"]["name"].as_str().unwrap();
            assert!(named("Deployment").contains(target), "{base}: {target}");
        }
        let monitors = resources.iter().filter(|one| one["kind"] == "ServiceMonitor");
        for monitor in monitors {
            let wanted = &monitor["spec"]["selector"]["matchLabels"];
            let mut services = resources.iter().filter(|one| one["kind"] == "Service");
            assert!(services.any(|one| picks(wanted, &one["metadata"]["labels"])), "{base}");
        }
    }
}

#[test]
fn the_routes_are_what_the_api_takes() {
    let text = fs::read_to_string(folder().join("routes/ingress.yaml")).unwrap();
    validate("ingress.yaml", &[serde_yaml::from_str(&text).unwrap()]);
    let route: Value =
        serde_yaml::from_str(&fs::read_to_string(folder().join("routes/gateway-api.yaml")).unwrap()).unwrap();
    let Some(resources) = rendered("replicas") else { return };
    for backend in array(&route["spec"]["rules"]).flat_map(|rule| array(&rule["backendRefs"])) {
        let leads = resources.iter().any(|one| {
            one["kind"] == "Service"
                && one["metadata"]["name"] == backend["name"]
                && array(&one["spec"]["ports"]).any(|port| port["port"] == backend["port"])
        });
        assert!(leads, "{backend}");
    }
}

#[test]
fn every_gateway_container_is_confined_probed_and_given_the_time_to_drain() {
    let mut seen = BTreeMap::new();
    for base in BASES {
        let Some(resources) = rendered(base) else { return };
        for (name, pod) in pods(&resources) {
            let gateway = array(&pod["spec"]["containers"]).find(|one| one["name"] == "portcullis").unwrap();
            *seen.entry(base).or_insert(0) += 1;
            let told = format!("{base}: {name}");
            let own = &gateway["securityContext"];
            let pods = &pod["spec"]["securityContext"];
            let either = |key: &str| if own[key].is_null() { &pods[key] } else { &own[key] };
            assert_eq!(*either("runAsNonRoot"), true, "{told}");
            assert_eq!(*either("runAsUser"), UID, "{told}");
            assert_eq!(pods["fsGroup"], UID, "{told}");
            assert_eq!(either("seccompProfile")["type"], "RuntimeDefault", "{told}");
            assert_eq!(own["readOnlyRootFilesystem"], true, "{told}");
            assert_eq!(own["allowPrivilegeEscalation"], false, "{told}");
            assert_eq!(own["capabilities"]["drop"][0], "ALL", "{told}");
            assert_eq!(gateway["livenessProbe"]["httpGet"]["path"], "/livez", "{told}");
            assert_eq!(gateway["readinessProbe"]["httpGet"]["path"], "/readyz", "{told}");
            assert!(gateway["resources"]["limits"]["memory"].is_string(), "{told}");
            for mount in array(&gateway["volumeMounts"]) {
                assert!(mount["subPath"].is_null(), "{told}: never updated by Kubernetes");
            }
            let map =
                array(&pod["spec"]["volumes"]).find_map(|one| one["configMap"]["name"].as_str()).unwrap();
            let map =
                resources.iter().find(|one| one["kind"] == "ConfigMap" && one["metadata"]["name"] == map);
            let file: Value =
                serde_yaml::from_str(map.unwrap()["data"]["gateway.yaml"].as_str().unwrap()).unwrap();
            let timeout = seconds(file["shutdown"]["timeout"].as_str().unwrap());
            let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
            assert!(timeout < grace, "{told}: killed after {grace} s, done after {timeout} s");
            let probe = &gateway["readinessProbe"];
            let noticed =
                probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap();
            assert!(seconds(file["shutdown"]["drain"].as_str().unwrap()) > noticed, "{told}");
            // In one pod all are stopped at once: the CMS has to wait for the gateway.
            for other in array(&pod["spec"]["containers"]).filter(|one| one["name"] != "portcullis") {
                let waits = other["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
                assert!((timeout..grace).contains(&waits), "{told}: the CMS waits {waits} s");
            }
        }
    }
    assert_eq!(seen.values().sum::<i32>(), 6, "{seen:?}");
}

#[test]
fn of_a_pod_with_a_sidecar_and_of_a_cms_nothing_but_the_gateway_can_be_reached() {
    for (base, labels) in [
        ("standalone", serde_json::json!({ "app": "cms" })),
        ("replicas", serde_json::json!({ "app": "cms" })),
        ("example-sidecar", serde_json::json!({ "app": "cms", "portcullis": "sidecar" })),
    ] {
        let Some(resources) = rendered(base) else { return };
        let policies: Vec<_> = resources
            .iter()
            .filter(|one| {
                one["kind"] == "NetworkPolicy" && picks(&one["spec"]["podSelector"]["matchLabels"], &labels)
            })
            .collect();
        assert!(!policies.is_empty(), "{base}: the CMS is open");
        // Policies add up, so each way in of each counts.
        for rule in policies.iter().flat_map(|policy| array(&policy["spec"]["ingress"])) {
            let to_the_gateway = array(&rule["ports"]).next().is_some()
                && array(&rule["ports"])
                    .all(|port| port["port"].as_str().is_some_and(|name| name.starts_with("gateway")));
            let from_a_gateway = array(&rule["from"]).next().is_some()
                && array(&rule["from"]).all(|peer| {
                    let name = peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"].as_str();
                    name.is_some_and(|name| name.starts_with("portcullis"))
                        && peer["namespaceSelector"].is_null()
                });
            assert!(to_the_gateway || from_a_gateway, "{base}: {rule}");
        }
    }
}

#[test]
fn every_gateway_file_passes_check_without_a_warning() {
    for file in [
        "standalone/gateway.yaml",
        "replicas/gateway.yaml",
        "replicas/login.yaml",
        "sidecar/gateway.yaml",
        "forward-auth/gateway.yaml",
    ] {
        let mounted = tempfile::tempdir().unwrap();
        fs::create_dir_all(mounted.path().join("secret")).unwrap();
        fs::write(mounted.path().join("secret/gateway-secret"), "0123456789abcdef0123456789abcdef\n")
            .unwrap();
        fs::create_dir_all(mounted.path().join("config")).unwrap();
        fs::copy(folder().join(file), mounted.path().join("config/gateway.yaml")).unwrap();
        let output = run(&mounted.path().join("config"), &["check"], "");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !told.contains("warning"), "{file}: {told}");
    }
}

/// A ConfigMap or Secret as the kubelet mounts it: root's files in a folder of their own, a link `..data` to it,
/// and links through that.
fn mount(at: &Path, generation: u32, files: &[(&str, &[u8])], mode: u32) {
    fs::create_dir_all(at).unwrap();
    chown(at, Some(0), Some(UID)).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o2777)).unwrap();
    let version = format!("..2026_11_24_{generation}");
    fs::create_dir(at.join(&version)).unwrap();
    fs::set_permissions(at.join(&version), fs::Permissions::from_mode(0o2755)).unwrap();
    for (name, content) in files {
        let file = at.join(&version).join(name);
        fs::write(&file, content).unwrap();
        chown(&file, Some(0), Some(UID)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        if generation == 1 {
            symlink(Path::new("..data").join(name), at.join(name)).unwrap();
        }
    }
    symlink(&version, at.join("..data_tmp")).unwrap();
    fs::rename(at.join("..data_tmp"), at.join("..data")).unwrap();
}

/// What comes before the command. No capability is left either, so that root's own ways past modes are not there.
fn as_the_pods_user() -> Command {
    let (user, mut command) = (UID.to_string(), Command::new("setpriv"));
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    ]);
    command
}

#[test]
fn on_a_volume_which_is_roots_commands_make_what_they_have_to() {
    let mounted = tempfile::tempdir().unwrap();
    if fs::metadata(mounted.path()).unwrap().uid() != 0 {
        println!("skipped: only root can mount as the kubelet does");
        return;
    }
    fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for folder in ["state", "keys"] {
        mount(&mounted.path().join(folder), 1, &[], 0o440);
    }
    let root = mounted.path().to_str().unwrap();
    let file = mounted.path().join("gateway.yaml");
    let text = format!(
        "upstream: http://127.0.0.1:1\nroles: [Viewer]\nrules: [{{ path: /, allow: deny }}]\n\
         state: {root}/state\ntokens: {{ keys: {root}/keys }}\n"
    );
    fs::write(&file, text).unwrap();
    for command in ["keys rotate", "keys rotate", "token issue nobody", "keys list"] {
        let mut run = as_the_pods_user();
        run.arg(binary()).args(command.split(' ')).arg("--config").arg(&file);
        let output = run.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // There is no such user; everything up to there works.
        assert_eq!(output.status.success(), !command.starts_with("token"), "{command}: {told}");
        assert!(!told.contains("warning") && !told.contains("ermitted"), "{command}: {told}");
    }
    let made: Vec<_> =
        fs::read_dir(mounted.path().join("keys")).unwrap().map(|one| one.unwrap().path()).collect();
    let keys: Vec<_> = made.iter().filter(|path| path.extension().is_some_and(|end| end == "pem")).collect();
    assert!(!keys.is_empty(), "{made:?}");
    for key in keys {
        let file = fs::metadata(key).unwrap();
        assert_eq!((file.uid(), file.mode() & 0o777), (UID, 0o600));
    }
}

#[tokio::test]
async fn what_kubernetes_mounts_is_enough_and_a_configmap_that_changes_is_in_force() {
    let mounted = tempfile::tempdir().unwrap();
    if fs::metadata(mounted.path()).unwrap().uid() != 0 {
        println!("skipped: only root can mount as the kubelet does");
        return;
    }
    fs::set_permissions(mounted.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = mounted.path().to_str().unwrap();
    let file = |allow: &str| {
        format!(
            "listen: 127.0.0.1:LISTEN\nadmin: 127.0.0.1:0\nupstream: http://127.0.0.1:1\nstate: {root}/state\n\
             roles: [Viewer]\nrules: [{{ path: /page, allow: {allow} }}, {{ path: /, allow: deny }}]\n\
             tokens: {{ keys: {root}/keys }}\nlogin: {{ path: /in }}\nlog: {{ format: json }}\n\
             identity: {{ secret: {{ header: X-Gateway-Secret, value: \"${{file:../secret/gateway-secret}}\" }} }}\n"
        )
    };
    let key = portcullis::token::generate_pkcs8_pem(portcullis::token::Algorithm::EdDSA).unwrap();
    mount(&mounted.path().join("secret"), 1, &[("gateway-secret", b"0123456789abcdef")], 0o440);
    mount(&mounted.path().join("keys"), 1, &[("k1.pem", key.as_bytes())], 0o440);
    mount(&mounted.path().join("state"), 1, &[], 0o440);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let config = mounted.path().join("config");
    mount(&config, 1, &[("gateway.yaml", file("Viewer").replace("LISTEN", &port).as_bytes())], 0o644);
    let path = config.join("gateway.yaml");
    let mut child = as_the_pods_user()
        .args([binary(), "serve", "--config", path.to_str().unwrap()])
        .stderr(fs::File::create(mounted.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let log = || fs::read_to_string(mounted.path().join("log")).unwrap();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    // Until it is up, and then until the other configuration is in force.
    for (swap, wanted) in [(None, 401), (Some("public"), 502)] {
        if let Some(allow) = swap {
            mount(&config, 2, &[("gateway.yaml", file(allow).replace("LISTEN", &port).as_bytes())], 0o644);
        }
        loop {
            let answer = crate::harness::Call::new(address, "GET", "/page").try_send().await;
            if answer.is_ok_and(|answer| answer.status == wanted) {
                break;
            }
            let ended = child.try_wait().unwrap().is_some();
            assert!(!ended && std::time::Instant::now() < deadline, "{swap:?}: {}", log());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let keys = crate::harness::Call::new(address, "GET", "/.well-known/jwks.json").send().await.text();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(keys.contains("\"k1\""), "the Secret's key, and no other: {keys}");
    assert!(!log().contains("\"level\":\"ERROR\""), "{}", log());
}
