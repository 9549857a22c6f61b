//! A headless Chromium, driven by the DevTools protocol over a pair of pipes: no port, no library.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest wait for an answer of the browser, and for what a page is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a page.
const POLL: Duration = Duration::from_millis(100);
/// Messages that may wait to be read.
const WAITING: usize = 4096;
/// Programs that will do.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// A browser with one page. Dropped, it is killed.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// Addresses that the page asked for.
    pub requests: Vec<String>,
    /// What the page or the browser complained of.
    pub complaints: Vec<String>,
    _files: TempDir,
}

/// A key, as the protocol names it.
#[derive(Debug, Clone, Copy)]
pub enum Key {
    /// Tab.
    Tab,
    /// Enter.
    Enter,
}

impl Browser {
    /// Starts one; `None` where the machine has none.
    ///
    /// # Panics
    /// Where there is one that does not start.
    #[must_use]
    pub fn launch() -> Option<Self> {
        let program = program()?;
        let files = tempfile::tempdir().expect("a temporary directory");
        let pipe = |name: &str| {
            let path = files.path().join(name);
            mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
            // Opened both ways, so that nobody waits for the other end.
            let file = OpenOptions::new().read(true).write(true).open(&path).expect("a pipe");
            (path, file)
        };
        let ((to_path, to), (from_path, from)) = (pipe("to"), pipe("from"));
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<\"$TO\" 4>\"$FROM\"", &program])
            // The page is our own, and root has no sandbox.
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--no-proxy-server", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--hide-scrollbars"])
            .args(["--remote-debugging-pipe", "about:blank"])
            .arg(format!("--user-data-dir={}", files.path().join("profile").display()))
            .envs([("TO", &to_path), ("FROM", &from_path), ("HOME", &files.path().to_owned())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let (says, heard) = sync_channel(WAITING);
        std::thread::spawn(move || {
            // Each message ends with a zero byte. Ends when nobody listens any more.
            for message in BufReader::new(from).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).unwrap_or_default();
                if says.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            to,
            from: heard,
            session: None,
            next: 1,
            requests: Vec::new(),
            complaints: Vec::new(),
            _files: files,
        };
        browser.attach();
        Some(browser)
    }

    fn attach(&mut self) {
        let target = self.ask("Target.createTarget", json!({"url": "about:blank"}));
        let attached = self
            .ask("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Network", "Log", "DOM", "Accessibility"] {
            self.ask(&format!("{domain}.enable"), json!({}));
        }
    }

    /// A window of that size in light or dark colours.
    pub fn look(&mut self, width: u32, height: u32, scheme: &str) {
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.ask("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) {
        self.ask("Page.navigate", json!({"url": url}));
    }

    /// The value of an expression in the page.
    ///
    /// # Panics
    /// Where it throws.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.ask("Runtime.evaluate", parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression holds.
    ///
    /// # Panics
    /// Where it does not within a minute; says what the page shows instead.
    pub fn until(&mut self, expression: &str) {
        // Each look is a round trip, and the pause between them is the browser's.
        let pause = format!("new Promise(done => setTimeout(done, {}))", POLL.as_millis());
        let looks = PATIENCE.as_millis() / POLL.as_millis();
        for _ in 0..looks {
            if self.value(&format!("Boolean({expression})")) == json!(true) {
                return;
            }
            self.value(&pause);
        }
        let shown = self.value("document.body.innerText");
        panic!("waited in vain for {expression}; the page shows {shown}; {:?}", self.complaints);
    }

    /// Presses a key.
    pub fn press(&mut self, key: Key) {
        let (name, code, text) = match key {
            Key::Tab => ("Tab", 9, ""),
            Key::Enter => ("Enter", 13, "\r"),
        };
        for kind in ["keyDown", "keyUp"] {
            let parameters = json!({"type": kind, "key": name, "code": name, "text": text,
                "windowsVirtualKeyCode": code});
            self.ask("Input.dispatchKeyEvent", parameters);
        }
    }

    /// What assistive technology is told: role and name of everything that is not ignored.
    pub fn accessible(&mut self) -> Vec<(String, String)> {
        let tree = self.ask("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let shown = nodes.iter().filter(|node| node["ignored"] == json!(false));
        shown.map(|node| (text(&node["role"]), text(&node["name"]))).collect()
    }

    /// Writes a picture of the window, as PNG.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn picture(&mut self, path: &Path) {
        let shot = self.ask("Page.captureScreenshot", json!({"format": "png"}));
        let bytes = base64(shot["data"].as_str().unwrap_or_default());
        std::fs::write(path, bytes).expect("a picture");
    }

    /// Asks and waits for the answer; events that come meanwhile are noted.
    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        let id = self.next;
        self.next += 1;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("a pipe to the browser");
        loop {
            let message = match self.from.recv_timeout(PATIENCE) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{method}: the browser does not answer: {:?}", self.child.try_wait())
                }
                Err(RecvTimeoutError::Disconnected) => panic!("{method}: the browser has ended"),
            };
            if message["id"] == json!(id) {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let about = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                self.requests.extend(about["request"]["url"].as_str().map(str::to_owned));
            }
            "Log.entryAdded" => self.complaints.push(about["entry"].to_string()),
            "Runtime.exceptionThrown" => {
                self.complaints.push(about["exceptionDetails"].to_string());
            }
            "Runtime.consoleAPICalled" => self.complaints.push(about["args"].to_string()),
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `$CHROMIUM`, or the first of the usual names on the path.
fn program() -> Option<String> {
    if let Some(named) = std::env::var("CHROMIUM").ok().filter(|name| !name.is_empty()) {
        return Some(named);
    }
    let path = std::env::var_os("PATH")?;
    let found = NAMES.iter().flat_map(|name| {
        std::env::split_paths(&path).map(move |dir| dir.join(name)).filter(|file| file.is_file())
    });
    found.map(|file| file.display().to_string()).next()
}

/// The bytes of a text in base64 (RFC 4648 §4).
fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut out) = (0_u32, 0, Vec::with_capacity(text.len() / 4 * 3));
    for letter in text.bytes().take_while(|letter| *letter != b'=') {
        let Some(value) = LETTERS.iter().position(|known| *known == letter) else { continue };
        bits = bits << 6 | u32::try_from(value).unwrap_or(0);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).unwrap_or(0));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_read() {
        assert_eq!(base64("Zm9vYmE="), b"fooba");
        assert_eq!(base64("Zm9vYg=="), b"foob");
        assert_eq!(base64("+/8A"), [0xfb, 0xff, 0x00]);
    }
}
