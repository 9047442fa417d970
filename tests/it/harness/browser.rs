//! A real browser: headless Chromium, told what to do by WebDriver (W3C) through ChromeDriver.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use super::{Call, PATIENCE};

/// A browser starts slowly where others use the machine, too.
const BROWSER_PATIENCE: Duration = Duration::from_secs(90);

/// How WebDriver calls the field that holds an element's id.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser window with a profile of its own.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

/// An element of the page.
#[derive(Clone, Debug)]
pub struct Element(String);

fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|file| file.is_file())
}

impl Browser {
    /// Starts one; `None`, said aloud, where there is no Chromium, which is a failure where `CI=true`.
    pub async fn start() -> Option<Self> {
        let driver = installed(&["chromedriver"]);
        let chromium = installed(&["chromium", "chromium-browser", "google-chrome"]);
        let Some((driver, chromium)) = driver.zip(chromium) else {
            let why = "no Chromium with its ChromeDriver (Debian: chromium, chromium-driver)";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
            eprintln!("skipped: {why}");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What Chromium leaves behind goes with the profile.
            .env("TMPDIR", profile.path())
            .spawn()
            .unwrap();
        let said = BufReader::new(driver.stdout.take().unwrap());
        let port = tokio::task::spawn_blocking(move || {
            said.lines().map_while(Result::ok).find_map(|line| {
                line.strip_prefix("ChromeDriver was started successfully on port ")?
                    .trim_end_matches('.')
                    .parse()
                    .ok()
            })
        });
        let port: u16 = port.await.unwrap().expect("ChromeDriver says its port");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-features=PasswordLeakDetection",
            "--window-size=1000,800",
            &format!("--user-data-dir={}", browser._profile.path().join("profile").display()),
        ];
        let options = json!({ "args": arguments, "binary": chromium,
            "prefs": { "credentials_enable_service": false } });
        // An element that a page under way will bring is waited for.
        let wanted = json!({ "goog:chromeOptions": options, "timeouts": { "implicit": 20_000 } });
        let wanted = json!({ "capabilities": { "alwaysMatch": wanted } });
        let session = browser.call("POST", "/session", wanted).await;
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    /// A call of the driver, whose answer must be a success.
    async fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let call = Call::new(self.address, method, path);
        let call = if method == "POST" { call.json(&body) } else { call };
        let answer = call.send_within(BROWSER_PATIENCE).await.unwrap();
        let value = answer.json()["value"].take();
        assert_eq!(answer.status, 200, "{method} {path} {body}: {}: {}", value["error"], value["message"]);
        value
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body).await
    }

    async fn get(&self, path: &str) -> Value {
        self.call("GET", &format!("{}{path}", self.session), Value::Null).await
    }

    /// Opens a page and waits until it is there.
    pub async fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    /// The address of the page.
    pub async fn url(&self) -> String {
        self.get("/url").await.as_str().unwrap().to_owned()
    }

    /// The title of the page.
    pub async fn title(&self) -> String {
        self.get("/title").await.as_str().unwrap().to_owned()
    }

    /// The first element that a CSS selector picks.
    pub async fn find(&self, selector: &str) -> Element {
        let found = self.post("/element", json!({ "using": "css selector", "value": selector })).await;
        Element(found[ELEMENT].as_str().unwrap().to_owned())
    }

    /// The element that has the focus.
    pub async fn focused(&self) -> Element {
        Element(self.get("/element/active").await[ELEMENT].as_str().unwrap().to_owned())
    }

    /// What a person can read on the page.
    pub async fn text(&self) -> String {
        let body = self.find("body").await;
        self.get(&format!("/element/{}/text", body.0)).await.as_str().unwrap().to_owned()
    }

    /// What a screen reader calls an element: its role and its name.
    pub async fn spoken(&self, element: &Element) -> (String, String) {
        let role = self.get(&format!("/element/{}/computedrole", element.0)).await;
        let name = self.get(&format!("/element/{}/computedlabel", element.0)).await;
        (role.as_str().unwrap().to_owned(), name.as_str().unwrap().to_owned())
    }

    /// An attribute as written, or a property as it is now.
    pub async fn property(&self, element: &Element, name: &str) -> Value {
        self.get(&format!("/element/{}/property/{name}", element.0)).await
    }

    /// Clicks on an element; a page that this opens is waited for.
    pub async fn click(&self, element: &Element) {
        self.post(&format!("/element/{}/click", element.0), json!({})).await;
    }

    /// Types on the keyboard, whatever has the focus. `\u{e004}` is Tab, `\u{e007}` Enter.
    pub async fn press(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
            })
            .collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.post("/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Waits until the page is at an address, for what `press` has set off.
    pub async fn arrives(&self, url: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let here = self.url().await;
            if here == url {
                return;
            }
            assert!(Instant::now() < deadline, "still at {here}, not at {url}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All cookies that the page at hand could be asked for, `HttpOnly` ones included.
    pub async fn cookies(&self) -> Vec<Value> {
        self.get("/cookie").await.as_array().unwrap().clone()
    }

    /// Forgets all cookies of the page at hand.
    pub async fn forget_cookies(&self) {
        self.call("DELETE", &format!("{}/cookie", self.session), Value::Null).await;
    }

    /// Runs a script in the page and waits for what it promises.
    pub async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// A command of the Chrome DevTools Protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Keeps what the window shows as `target/screenshots/NAME.png`.
    pub async fn keep_screenshot(&self, name: &str) {
        let picture = self.get("/screenshot").await;
        let picture = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), picture).unwrap();
    }
}

impl Drop for Browser {
    /// The driver closes the browser when its session ends; one that is only killed would leave it.
    fn drop(&mut self) {
        use std::io::{Read, Write};
        if let Ok(mut stream) = std::net::TcpStream::connect(self.address) {
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let host = self.address;
            let _ = write!(
                stream,
                "DELETE {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
                self.session
            );
            let _ = stream.read(&mut [0; 1024]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
