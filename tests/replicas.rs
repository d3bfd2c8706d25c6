//! Replicas of the service that keep added items in PostgreSQL, alone and behind nginx. The tests start their own servers in temporary
//! folders, and print that they are skipped if PostgreSQL or nginx is not installed.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mp4sr_artifact::files;
use mp4sr_tests::service::{Answer, Service, base64};
use mp4sr_tests::{Project, root, stderr_of};
use serde_json::{Value, json};

/// The password of the tests' databases, which must not be in any output.
const PASSWORD: &str = "s3cret/of@the:tests";
/// The password as it is encoded in a URL.
const ENCODED: &str = "s3cret%2Fof%40the%3Atests";

/// A PostgreSQL server in a temporary folder; it stops when the value is dropped.
struct Postgres {
    folder: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    running: Option<Child>,
}

/// A port that was free when the function returned.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `done`, and fails after a minute.
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

impl Postgres {
    /// Starts a server with the superuser `mp4sr`; `None` if PostgreSQL is not installed.
    fn start() -> Option<Self> {
        let listed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = listed.map(|entry| entry.path().join("bin")).collect();
        folders.sort();
        let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
        folders.extend(on_path.unwrap_or_default());
        let Some(programs) =
            folders.into_iter().find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        else {
            println!("skipped: PostgreSQL is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), PASSWORD).unwrap();
        let mut own = Self { folder, programs, port: free_port(), running: None };
        if Self::is_root() {
            let done = Command::new("chown").arg("-R").arg("nobody").arg(own.folder.path()).status().unwrap();
            assert!(done.success());
        }
        let data = own.path("data");
        let password = format!("--pwfile={}", own.path("password").display());
        let words = ["-U", "mp4sr", "-A", "scram-sha-256", "--locale=C", "-E", "UTF8", "--no-sync", &password, "-D"];
        let made = own.program("initdb").args(words).arg(data).output().unwrap();
        assert!(made.status.success(), "{}", stderr_of(&made));
        own.run();
        Some(own)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn is_root() -> bool {
        Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
    }

    /// A command of one of its programs, run by an unprivileged user because PostgreSQL refuses to run as root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if Self::is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path());
        command
    }

    fn run(&mut self) {
        let (port, folder) = (self.port.to_string(), self.folder.path().display().to_string());
        let mut command = self.program("postgres");
        command.args(["-p", &port, "-k", &folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-D"]);
        let log = std::fs::File::create(self.path("log")).unwrap();
        command.arg(self.path("data")).stdout(Stdio::null()).stderr(log);
        self.running = Some(command.spawn().unwrap());
        wait("PostgreSQL does not start", || self.try_sql("postgres", "select 1").status.success());
    }

    /// Restarts the server with a certificate, so that it requires TLS. Returns the path of the authority's certificate.
    fn demand_tls(&mut self) -> PathBuf {
        let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority && \
                      openssl req -newkey rsa:2048 -nodes -keyout data/server.key -out server.csr -subj /CN=server && \
                      echo subjectAltName=IP:127.0.0.1 > names && \
                      openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out data/server.crt && \
                      chmod 600 data/server.key && echo ssl=on >> data/postgresql.conf && \
                      sed -i s/^host/hostssl/ data/pg_hba.conf";
        let made = Command::new("sh").args(["-c", script]).current_dir(self.folder.path()).output().unwrap();
        assert!(made.status.success(), "{}", stderr_of(&made));
        if Self::is_root() {
            let done = Command::new("chown").arg("-R").arg("nobody").arg(self.path("data")).status().unwrap();
            assert!(done.success());
        }
        self.stop();
        self.run();
        self.path("ca.pem")
    }

    /// Stops the server at once, which closes every connection.
    fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let done = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            assert!(done.success());
            child.wait().unwrap();
        }
    }

    fn try_sql(&self, database: &str, text: &str) -> Output {
        let mut command = Command::new(self.programs.join("psql"));
        command.env("PGPASSWORD", PASSWORD).args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"]);
        command.args(["-U", "mp4sr", "-p", &self.port.to_string(), "-d", database, "-c", text]).output().unwrap()
    }

    fn sql(&self, text: &str) -> String {
        let output = self.try_sql("postgres", text);
        assert!(output.status.success(), "{}", stderr_of(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn address(&self) -> String {
        format!("postgres://mp4sr:{ENCODED}@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            drop(Command::new("kill").args(["-INT", &child.id().to_string()]).status());
            drop(child.wait());
        }
    }
}

/// nginx with the configuration in `deploy/`, in front of two replicas.
struct Nginx {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx; `None` if it is not installed.
    fn start(replicas: [&Service; 2]) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists());
        let Some(program) = program else {
            println!("skipped: nginx is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let text = files::read_to_string(&root().join("deploy/nginx.conf")).unwrap();
        let text = text.replace("127.0.0.1:8080", &address);
        let text = text.replace("127.0.0.1:8081", &replicas[0].address).replace("127.0.0.1:8082", &replicas[1].address);
        let path = folder.path().join("nginx.conf");
        // If root starts nginx, its workers run as another user, who must be able to write here.
        std::fs::write(&path, format!("daemon off;\n{text}")).unwrap();
        let user = Command::new("chmod").arg("777").arg(folder.path()).status().unwrap();
        assert!(user.success());
        let mut command = Command::new(program);
        command.arg("-p").arg(folder.path()).arg("-c").arg(&path).args(["-e", "error.log"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait("nginx does not start", || {
            if child.try_wait().unwrap().is_some() {
                let mut text = String::new();
                child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("{text}");
            }
            std::net::TcpStream::connect(&address).is_ok()
        });
        Some(Self { child, address, _folder: folder })
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        mp4sr_tests::service::send(&self.address, method, path, "", body.to_string().as_bytes())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        drop(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status());
        drop(self.child.wait());
    }
}

fn trained() -> Project {
    let world = Project::small();
    world.run("run", &["--until", "recommend"]);
    world
}

/// The arguments that make a service a replica which keeps its items in `store`.
fn words(store: &str) -> Vec<String> {
    ["--set".to_owned(), format!("serve.store={store}"), "--set".to_owned(), "serve.poll_seconds=0.1".to_owned()]
        .to_vec()
}

fn replica(world: &Project, store: &Postgres) -> Service {
    let words = words(&store.address());
    Service::start(world, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn put(service: &Service, items: &Value) -> Answer {
    service.send("PUT", "/v1/items", "", json!({ "items": items }).to_string().as_bytes())
}

#[test]
fn an_item_that_one_replica_added_is_recommended_by_the_other_with_the_same_scores() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let image = files::read(&root().join("fuzz/seeds/image/one.png")).unwrap();
    let items = json!([
        { "item_id": "new/one", "title": "A thing of group 3", "texts": ["It is <b>red</b>."], "images": [base64(&image)], "categories": ["Things"] },
        { "item_id": "two", "title": "A thing of group 5" },
    ]);
    let request = json!({ "history": ["i3", "i4"], "k": 40 });
    // The lists of the run without added items, and with items that are kept in its folder.
    let alone = Service::start(&world, &[]);
    let without = alone.post("/v1/recommend", &request).list();
    assert_eq!(put(&alone, &items).status, 200);
    let expected = alone.post("/v1/recommend", &request).list();
    assert_eq!((without.len(), expected.len()), (30, 32));
    drop(alone);

    let (first, second) = (replica(&world, &store), replica(&world, &store));
    assert_eq!(first.post("/v1/recommend", &request).list(), without, "the folder does not count");
    let Some(nginx) = Nginx::start([&first, &second]) else { return };
    let added = nginx.send("PUT", "/v1/items", &json!({ "items": items }));
    assert_eq!((added.status, &added.json()["added"]), (200, &json!(["new/one", "two"])), "{}", added.body);
    for service in [&first, &second] {
        wait("a replica does not see the items", || service.post("/v1/recommend", &request).list().len() == 32);
        assert_eq!(service.post("/v1/recommend", &request).list(), expected);
        let item = service.get("/v1/items/new%2Fone").json();
        assert_eq!((&item["is_new"], &item["sentences"][1]), (&json!(true), &json!("It is red.")));
        let image = service.get(item["images"][0].as_str().unwrap());
        assert_eq!((image.status, image.headers["content-type"].as_str()), (200, "image/png"));
        assert_eq!(service.get("/readyz").json()["store"], "reachable");
    }
    assert_eq!(nginx.send("POST", "/v1/recommend", &request).list(), expected);
    // The command line lists the same items.
    let listed = world.run(
        "items",
        &[&["list"][..], &words(&store.address()).iter().map(String::as_str).collect::<Vec<_>>()].concat(),
    );
    assert_eq!(listed, "new/one\tA thing of group 3\ntwo\tA thing of group 5\n");

    // A replica elsewhere, without encoders and cached vectors, has the same vectors.
    let elsewhere = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(world.path("a")).arg(elsewhere.path()).status().unwrap();
    assert!(copied.success());
    let mut command = mp4sr_tests::command("serve");
    command.args(["--port", "0", "--run"]).arg(elsewhere.path().join("a/runs/mp4sr")).args(words("env:A_STORE"));
    command.env("A_STORE", store.address());
    let third = Service::spawn(command);
    assert_eq!(third.post("/v1/recommend", &request).list(), expected);
    assert!(!elsewhere.path().join(".cache").exists(), "nothing was encoded");

    // Clients do not notice that a replica has stopped.
    drop(first);
    for _ in 0..20 {
        assert_eq!(nginx.send("POST", "/v1/recommend", &request).list(), expected);
    }
    let removed = nginx.send("DELETE", "/v1/items", &json!({ "item_ids": ["new/one", "two"] }));
    assert_eq!((removed.status, &removed.json()["removed"]), (200, &json!(2)), "{}", removed.body);
    for service in [&second, &third] {
        wait("a replica still has the items", || service.post("/v1/recommend", &request).list() == without);
    }
    assert_eq!(store.sql("select count(*) from mp4sr_features, mp4sr_images"), "0");
}

#[test]
fn when_replicas_add_the_same_item_at_once_one_adds_it_and_the_last_wins() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let replicas = [replica(&world, &store), replica(&world, &store)];
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let add = |at: usize| {
            let replica = &replicas[at % 2];
            let items = json!([{ "item_id": "same", "title": format!("A thing of group {at}") }, { "item_id": format!("own-{at}"), "title": "A thing" }]);
            scope.spawn(move || {
                let answer = put(replica, &items);
                assert_eq!(answer.status, 200, "{}", answer.body);
                answer.json()
            })
        };
        let threads: Vec<_> = (0..6).map(add).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let names = |answer: &Value, key: &str| answer[key].as_array().unwrap().iter().any(|id| id == "same");
    assert_eq!(answers.iter().filter(|answer| names(answer, "added")).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| names(answer, "replaced")).count(), 5, "{answers:?}");
    let lists = || {
        let list = |service: &Service| {
            let title = service.get("/v1/items/same").json()["title"].clone();
            (title, service.post("/v1/recommend", &json!({ "history": ["i9"], "k": 50 })).list())
        };
        replicas.each_ref().map(list)
    };
    wait("the replicas do not agree", || lists()[0] == lists()[1] && lists()[0].1.len() == 37);
    let stored = store.sql("select texts::json ->> 'title' from mp4sr_items where item_id = 'same'");
    assert_eq!(lists()[0].0, json!(stored));
    // One item has an id of the dataset, so none of the items is added.
    let answer =
        put(&replicas[0], &json!([{ "item_id": "fine", "title": "A thing" }, { "item_id": "i3", "title": "A thing" }]));
    assert_eq!(answer.status, 422, "{}", answer.body);
    let answer = replicas[1].send("DELETE", "/v1/items", "", br#"{"item_ids": ["same", "nope"]}"#);
    assert_eq!((answer.status, answer.body.contains("not added to the run: `nope`")), (422, true), "{}", answer.body);
    assert_eq!(store.sql("select count(*) from mp4sr_items"), "7");
}

#[test]
fn lists_are_served_without_the_store_and_changes_are_asked_to_retry() {
    let Some(mut store) = Postgres::start() else { return };
    let world = trained();
    let service = replica(&world, &store);
    let items = json!([{ "item_id": "one", "title": "A thing of group 3" }]);
    assert_eq!(put(&service, &items).status, 200);
    let request = json!({ "history": ["i3", "i4"], "k": 40 });
    let expected = service.post("/v1/recommend", &request).list();
    store.stop();
    wait("nobody notices", || service.get("/readyz").json()["store"] == "unreachable");
    assert_eq!(
        (service.get("/readyz").status, service.post("/v1/recommend", &request).list()),
        (200, expected.clone())
    );
    assert!(service.get("/metrics").body.contains("mp4sr_store_up 0"));
    for answer in [put(&service, &items), service.send("DELETE", "/v1/items", "", br#"{"item_ids": ["one"]}"#)] {
        assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"), "{}", answer.body);
        assert_eq!(answer.json()["error"]["code"], "store_unavailable");
    }
    service.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(service.post("/v1/recommend", &request).list(), expected);
    let words = words(&store.address());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = world.run_failing("serve", &[&["--port", "0"][..], &words].concat());
    assert!(refused.contains("cannot be used: error connecting") && refused.contains("start PostgreSQL"), "{refused}");
    store.run();
    wait("the store is not found again", || {
        put(&service, &json!([{ "item_id": "two", "title": "A thing" }])).status == 200
    });
    assert!(service.post("/v1/recommend", &request).list().len() == 32);
    wait("metrics", || service.get("/metrics").body.contains("mp4sr_store_up 1"));
    // A table of another type or none at all is an error with a remedy, and the service goes on asking.
    store.sql("alter table mp4sr_items alter column texts type bytea using texts::bytea");
    let answer = put(&service, &items);
    assert!(answer.status == 503 && answer.body.contains("its tables were changed"), "{}", answer.body);
    store.sql("drop table mp4sr_features");
    let answer = put(&service, &items);
    assert!(
        answer.status == 503 && answer.body.contains("restore the tables of `deploy/store.sql`"),
        "{}",
        answer.body
    );
    assert!(!answer.body.contains("s3cret"));
    wait("the store is not asked any more", || service.get("/readyz").json()["store"] == "reachable");
}

/// Processes that are stopped; they go on when the value is dropped.
struct Stopped(Vec<String>);

impl Stopped {
    fn stop(processes: Vec<String>) -> Self {
        let own = Self(processes);
        own.signal("-STOP");
        own
    }

    fn signal(&self, name: &str) {
        drop(Command::new("kill").arg(name).args(&self.0).status());
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

/// A server that hangs is an error after a time limit: one that accepts connections, and one that was in use before.
#[test]
fn a_store_that_does_not_answer_is_unreachable() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = TcpListener::bind(hanging).unwrap();
    let list = |address: &str| ["list".to_owned(), "--set".to_owned(), format!("serve.store={address}")];
    let refused = list(&format!("postgres://u:s3cret@{hanging}/d"));
    let refused = world.run_failing("items", &refused.each_ref().map(String::as_str));
    assert!(refused.contains("has not answered within 10 seconds; look at its log"), "{refused}");
    // Of several hosts, the next one is used.
    let second = store.address().replace('@', &format!("@{hanging},"));
    assert_eq!(world.run("items", &list(&second).each_ref().map(String::as_str)), "");
    drop(listener);

    let service = replica(&world, &store);
    let items = json!([{ "item_id": "one", "title": "A thing of group 3" }]);
    let backends = store.sql("select pid from pg_stat_activity where application_name = 'mp4sr'");
    let server = store.running.as_ref().unwrap().id().to_string();
    let stopped = Stopped::stop([vec![server], backends.lines().map(str::to_owned).collect()].concat());
    wait("nobody notices", || service.get("/readyz").json()["store"] == "unreachable");
    let answer = put(&service, &items);
    assert!(answer.status == 503 && answer.body.contains("has not answered within"), "{}", answer.body);
    drop(stopped);
    wait("the store is not found again", || put(&service, &items).status == 200);
}

/// A change that is refused blocks no other replica, even if its replica does not ask again for a long time.
#[test]
fn a_refused_change_leaves_no_transaction_open() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let address = format!("serve.store={}", store.address());
    let service = Service::start(&world, &["--set", &address, "--set", "serve.poll_seconds=3600"]);
    assert_eq!(put(&service, &json!([{ "item_id": "one", "title": "A thing of group 3" }])).status, 200);
    let refused = service.send("DELETE", "/v1/items", "", json!({ "item_ids": ["nope"] }).to_string().as_bytes());
    assert_eq!(refused.status, 422, "{}", refused.body);
    let open = "select count(*) from pg_stat_activity where application_name = 'mp4sr' and state <> 'idle'";
    wait("a transaction is open", || store.sql(open) == "0");
}

/// Items with which the run could not be loaded once are loaded later, without a further change.
#[test]
fn a_change_of_another_replica_is_loaded_again_after_a_failure() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let (first, second) = (replica(&world, &store), replica(&world, &store));
    assert_eq!(put(&first, &json!([{ "item_id": "one", "title": "A thing of group 3" }])).status, 200);
    let length = || second.post("/v1/recommend", &json!({ "history": ["i3"], "k": 50 })).list().len();
    wait("the replica does not see the item", || length() == 31);
    let failures = |service: &Service| service.get("/metrics").body.contains("outcome=\"failed\"} 1");
    let encoder = store.sql("select encoder from mp4sr_features where modality = 'text'");
    store.sql("update mp4sr_features set encoder = 'other'; update mp4sr_runs set change = change + 1");
    wait("nobody reads the change", || failures(&first) && failures(&second));
    // Meanwhile, nothing is added that no replica could load.
    let new = world.folder().join("new.jsonl");
    world.write("new.jsonl", "{\"item_id\": \"two\", \"title\": \"A thing of group 3\"}\n");
    let address = words(&store.address());
    let address: Vec<&str> = address.iter().map(String::as_str).collect();
    let refused = world.run_failing("items", &[&["add", "--items", &new.display().to_string()][..], &address].concat());
    assert!(refused.contains("`one` and `two` come from two encoders"), "{refused}");
    assert_eq!(store.sql("select item_id from mp4sr_items"), "one");
    store.sql(&format!(
        "delete from mp4sr_features where modality = 'image'; update mp4sr_features set encoder = '{encoder}'"
    ));
    let refused = world.run_failing("items", &[&["add", "--items", &new.display().to_string()][..], &address].concat());
    assert!(refused.contains("`one` has no features of `image`"), "{refused}");
    store.sql("delete from mp4sr_items");
    wait("the change is not loaded again", || length() == 30);
}

/// A replica whose run cannot be loaded stores nothing that the others would take over.
#[test]
fn a_change_that_a_replica_cannot_load_is_not_stored() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let service = replica(&world, &store);
    let item = |id: &str| json!([{ "item_id": id, "title": "A thing of group 3" }]);
    assert_eq!(put(&service, &item("first")).status, 200);
    let weights = world.path("a/runs/mp4sr/finetune.safetensors");
    let sound = files::read(&weights).unwrap();
    files::write_bytes(&weights, &sound[..sound.len() / 2]).unwrap();
    let removal = json!({ "item_ids": ["first"] }).to_string();
    for answer in [put(&service, &item("second")), service.send("DELETE", "/v1/items", "", removal.as_bytes())] {
        assert_eq!(store.sql("select item_id from mp4sr_items"), "first", "{}", answer.body);
        assert!(answer.status == 500 && answer.body.contains("nothing was changed"), "{}", answer.body);
    }
    files::write_bytes(&weights, &sound).unwrap();
    assert_eq!(put(&service, &item("second")).status, 200);
    assert_eq!(store.sql("select item_id from mp4sr_items order by position"), "first\nsecond");
}

#[test]
fn errors_of_a_store_are_one_line_without_the_password() {
    let Some(store) = Postgres::start() else { return };
    let world = trained();
    let serve = |address: &str| {
        let words = [["--port".to_owned(), "0".to_owned()].to_vec(), words(address)].concat();
        let message = world.run_failing("serve", &words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!message.contains("s3cret") && !message.contains("of@the"), "{message}");
        message
    };
    let port = store.port;
    store.sql("create user reader password 's3cret'");
    for (address, parts) in [
        (
            format!("postgres://mp4sr:s3cretx@127.0.0.1:{port}/postgres"),
            ["rejected the password of the user `mp4sr`", "correct the user"],
        ),
        (format!("postgres://mp4sr@127.0.0.1:{port}/postgres"), ["requires a password", "`env:NAME`"]),
        (
            format!("postgres://mp4sr:{ENCODED}@127.0.0.1:{port}/nope"),
            ["the database `nope` does not exist", "createdb"],
        ),
        (
            format!("postgres://mp4sr:s3cret@127.0.0.1:{}/postgres", free_port()),
            ["error connecting", "start PostgreSQL"],
        ),
        (
            format!("postgres://reader:s3cret@127.0.0.1:{port}/postgres"),
            ["`reader` lacks a permission", "`deploy/store.sql`"],
        ),
        (format!("postgres://mp4sr:{ENCODED}@127.0.0.1:{port}/postgres?sslmode=require"), ["TLS", "`serve.store`"]),
        (
            format!("postgres://mp4sr:s3cret@127.0.0.1:{port}/postgres?sslmode=always"),
            ["is not a PostgreSQL URL", "%XX"],
        ),
        ("postgres://mp4sr:s3cret/of@the:tests@h:x/d".to_owned(), ["is not a PostgreSQL URL", "%XX"]),
        (format!("postgres://mp4sr:a@s3cret@127.0.0.1:{port}/postgres"), ["is not a PostgreSQL URL", "%XX"]),
        (format!("postgres://127.0.0.1:{port}/d?user=mp4sr&password=a@s3cret"), ["is not a PostgreSQL URL", "%XX"]),
        ("host=127.0.0.1 password=s3cret".to_owned(), ["serve.store", "`env:NAME`"]),
        ("env:NOT_A_VARIABLE".to_owned(), ["`NOT_A_VARIABLE`", "is not set"]),
        ("file:/not/a/file".to_owned(), ["/not/a/file", "write `postgres://"]),
    ] {
        let message = serve(&address);
        assert!(parts.iter().all(|part| message.contains(part)), "{address}: {message}");
    }
    store.sql("create table mp4sr_schema (version integer); insert into mp4sr_schema values (0)");
    let message = serve(&store.address());
    assert!(message.contains("have version 0, and this release of mp4sr reads version 1"), "{message}");
    store.sql("drop table mp4sr_schema");

    // A password in a pipeline must not be in any file or output of a run.
    let path = world.folder().join("store");
    files::write_bytes(&path, format!("{}\n", store.address()).as_bytes()).unwrap();
    let text = files::read_to_string(&world.pipeline("a")).unwrap();
    world.write("a.toml", format!("{text}[serve]\nstore = \"{}\"\n", store.address()));
    let printed = [
        world.run("run", &["--until", "report"]),
        world.run_stderr("doctor", &[]),
        world.run("serve", &["--dry-run", "--port", "0"]),
    ]
    .concat();
    let mut folders = vec![world.path("a")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for path in files::list(&folder).unwrap() {
            if path.is_dir() {
                folders.push(path);
            } else {
                count += 1;
                let bytes = files::read(&path).unwrap();
                assert!(!bytes.windows(6).any(|part| part == b"s3cret"), "{}", path.display());
            }
        }
    }
    assert!(count > 20 && !printed.contains("s3cret"), "{printed}");
    world.write("a.toml", text.clone());
    let service = replica_of_file(&world, &path);
    assert_eq!(put(&service, &json!([{ "item_id": "one", "title": "A thing" }])).status, 200);
    assert!(!service.get("/metrics").body.contains("s3cret"));
    drop(service);

    // A run of the same name on another dataset must not use the items.
    world.write("a.toml", text.replace("[preprocess]", "[preprocess]\nwhere = \"item_id <> 'i0'\""));
    world.run("run", &["--until", "recommend"]);
    let message = serve(&store.address());
    assert!(message.contains("were added to `a/mp4sr` when its dataset had other items"), "{message}");
}

fn replica_of_file(world: &Project, path: &Path) -> Service {
    let words = words(&format!("file:{}", path.display()));
    Service::start(world, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Several connections over TLS read and write. An export contains the items that only the store has.
#[test]
fn a_store_is_used_over_tls_and_its_items_are_exported() {
    let Some(mut store) = Postgres::start() else { return };
    if !Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: openssl is not installed");
        return;
    }
    let authority = store.demand_tls();
    let world = trained();
    let words = words(&format!("{}?sslmode=require", store.address()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refused = world.run_failing("serve", &[&["--port", "0"][..], &words].concat());
    assert!(refused.contains("certificate") && !refused.contains("s3cret"), "{refused}");

    let trusting = |name: &str, more: &[&str]| {
        let mut command = world.command(name, &[more, &words].concat());
        command.env("SSL_CERT_FILE", &authority);
        command
    };
    let service = Service::spawn(trusting("serve", &["--port", "0"]));
    assert_eq!(put(&service, &json!([{ "item_id": "new", "title": "A thing of group 3" }])).status, 200);
    let over_tls =
        "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl and pid <> pg_backend_pid()";
    assert_ne!(store.sql(over_tls), "0");
    let listed = service.post("/v1/recommend", &json!({ "history": ["i3", "i4"], "k": 40 })).list();
    assert_eq!(listed.len(), 31);

    let out = world.folder().join("exported");
    let formats = ["--format", "lists-jsonl,vectors-npy,huggingface", "--top", "31", "--out"];
    let exported = trusting("export", &[&formats[..], &[&out.display().to_string()]].concat()).output().unwrap();
    assert!(exported.status.success(), "{}", stderr_of(&exported));
    let ids: Vec<String> = serde_json::from_slice(&files::read(&out.join("vectors/item_ids.json")).unwrap()).unwrap();
    assert_eq!((ids.len(), ids.last().unwrap().as_str()), (31, "new"));
    let lists = files::read_to_string(&out.join("lists/lists.jsonl")).unwrap();
    assert!(lists.lines().all(|line| line.contains("\"new\"")), "{lists}");
    // The model folder contains the items, so it does not need the store.
    drop(service);
    store.stop();
    let run = out.join("huggingface/artifacts/a/runs/mp4sr").display().to_string();
    let answer =
        mp4sr_tests::command("recommend").args(["--run", &run, "--history", "i1", "--top", "31"]).output().unwrap();
    let printed = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success() && printed.contains("\"new\""), "{}", stderr_of(&answer));
}
