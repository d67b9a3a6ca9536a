//! Debian's docker-registry, with images that skopeo pushes.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::proxies::Proxy;
use super::rootfs;
use super::server::{Reply, Server};
use crate::make::{Layout, have, tool, umoci_layout, words};
use crate::store::Store;
use crate::support::eventually;

/// A running registry. Killed when dropped.
struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Registry {
    /// Starts one with its files in `dir`. `http` and `auth` are parts of its configuration.
    fn start(dir: &Path, http: &Value, auth: &Value) -> Self {
        // The port is free for a moment; nothing else on this machine should be quick enough.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut http = http.clone();
        http["addr"] = address.to_string().into();
        http["secret"] = "x".into();
        let mut config = json!({"version": "0.1", "log": {"level": "error", "accesslog": {"disabled": true}}, "http": http,
            "storage": {"filesystem": {"rootdirectory": dir.join("registry")}}});
        if !auth.is_null() {
            config["auth"] = auth.clone();
        }
        // YAML takes JSON.
        let path = dir.join(format!("registry-{}.yml", address.port()));
        fs::write(&path, config.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let registry = Self { child, address };
        assert!(eventually(Duration::from_secs(20), || TcpStream::connect(address).is_ok()));
        registry
    }

    fn plain(dir: &Path) -> Self {
        Self::start(dir, &json!({}), &Value::Null)
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Copies an image there.
    fn push(&self, dir: &Path, options: &str, from: &str, to: &str) {
        let to = self.name(to);
        words(dir, &format!("skopeo copy --quiet --dest-tls-verify=false {options}{from} docker://{to}"));
    }

    /// The digest of the manifest that stands behind a tag.
    fn digest(&self, dir: &Path, name: &str) -> String {
        let image = format!("docker://{}", self.name(name));
        let words = ["inspect", "--raw", "--tls-verify=false", &image];
        crate::make::sha256(tool(dir, "skopeo", words).as_bytes())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn images_of_every_kind_are_pulled_by_tag_and_digest() {
    if !have("images_of_every_kind_are_pulled_by_tag_and_digest", &["docker-registry", "skopeo", "umoci"]) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    umoci_layout(dir);
    let registry = Registry::plain(dir);
    registry.push(dir, "", "oci:layout:app", "me/app:v1");
    words(dir, "skopeo copy --quiet --dest-compress-format zstd oci:layout:app oci:zstd:v1");
    registry.push(dir, "", "oci:zstd:v1", "me/app:zstd");
    let zstd = words(
        dir,
        &format!("skopeo inspect --raw --tls-verify=false docker://{}", registry.name("me/app:zstd")),
    );
    assert!(zstd.contains("tar+zstd"), "{zstd}");
    registry.push(dir, "--format v2s2 ", "oci:layout:app", "me/app:docker");
    for tag in ["v1", "zstd", "docker"] {
        let name = registry.name(&format!("me/app:{tag}"));
        let digest = registry.digest(dir, &format!("me/app:{tag}"));
        let said = store.pulled(&name);
        assert!(said.starts_with(&format!("pulled {name} {digest}")), "{said}");
        assert_eq!(said.contains("was there already"), tag != "v1", "{said}");
        let by_digest = registry.name(&format!("me/app@{digest}"));
        assert!(store.pulled(&by_digest).contains(&format!("pulled {by_digest} {digest}")));
        assert_eq!(store.files("rootfs").len(), 1);
    }
    let loaded = Store::new();
    loaded.load(&format!("oci:{}:app", dir.join("layout").display()));
    assert_eq!(rootfs(&store), rootfs(&loaded));
    assert_eq!(store.images()[0]["config"]["Cmd"], json!(["one", "two"]));
    // A name that is in the store is not asked for again by others than `pull`.
    drop(registry);
    let name = store.names().remove(0);
    assert!(store.load(&name).contains("was there already"));
    store.pull(&[&name]).run().code(1).says("Connection refused");
}

#[test]
fn an_index_gives_the_image_for_this_platform() {
    if !have("an_index_gives_the_image_for_this_platform", &["docker-registry", "skopeo", "umoci"]) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    umoci_layout(dir);
    words(dir, "umoci config --image layout:base --tag arm --architecture arm64");
    let layout = Layout { dir: dir.join("layout") };
    let index: Value = serde_json::from_slice(&fs::read(dir.join("layout/index.json")).unwrap()).unwrap();
    let of = |tag: &str, architecture: &str| {
        let named = |manifest: &&Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let mut descriptor = index["manifests"].as_array().unwrap().iter().find(named).unwrap().clone();
        descriptor.as_object_mut().unwrap().remove("annotations");
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let (arm, amd) = (of("arm", "arm64"), of("app", "amd64"));
    let media_type = "application/vnd.oci.image.index.v1+json";
    let registry = Registry::plain(dir);
    for (manifests, tag) in [(vec![arm.clone(), amd.clone()], "both"), (vec![arm], "arm")] {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        layout.index(&[layout.document("index", &index)]);
        registry.push(dir, "--all ", "oci:layout", &format!("app:{tag}"));
    }
    let said = store.pulled(&registry.name("app:both"));
    assert!(said.contains(amd["digest"].as_str().unwrap()), "{said}");
    let by_digest = registry.name(&format!("app@{}", registry.digest(dir, "app:both")));
    assert!(store.pulled(&by_digest).contains(amd["digest"].as_str().unwrap()));
    let elsewhere = by_digest.replace(&registry.address.to_string(), "localhost:1");
    assert!(store.load(&elsewhere).contains("was there already"), "the digest is in the store");
    let name = registry.name("app:arm");
    let refused = store.pull(&[&name]).run().code(1);
    refused.says(&format!("{name} has no image for linux/amd64: there is only linux/arm64"));
    let refused = store.pull(&[&name, "--platform", "linux/arm64"]).run().code(1);
    refused.says("images for linux/arm64 can't run here: bothy's guests are linux/amd64");
    store.pull(&[&registry.name("app:none")]).run().code(1).says("has no app:none");
    store.pull(&["Upper"]).run().code(2).says("expected lower-case letters");
}

#[test]
fn a_password_is_had_from_docker_s_and_podman_s_files() {
    if !have(
        "a_password_is_had_from_docker_s_and_podman_s_files",
        &["docker-registry", "skopeo", "umoci", "htpasswd"],
    ) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    umoci_layout(dir);
    words(dir, "htpasswd -cbB htpasswd user word");
    let auth = json!({"htpasswd": {"realm": "x", "path": dir.join("htpasswd")}});
    let registry = Registry::start(dir, &json!({}), &auth);
    registry.push(dir, "--dest-creds user:word ", "oci:layout:app", "app");
    let name = registry.name("app");
    let pull = || store.pull(&["--insecure-registry", &name]);
    pull().run().code(1).says("it needs credentials (docker login");
    let write = |path: &str, password: &str| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let entry = json!({"username": "user", "password": password});
        fs::write(path, json!({"auths": {registry.address.to_string(): entry}}).to_string()).unwrap();
    };
    write("home/.docker/config.json", "wrong");
    pull().run().code(1).says("don't open it");
    write("run/containers/auth.json", "word");
    store.pull(&[&name]).run().code(1).says("only with --insecure-registry");
    pull().run().output();
    write("mine.json", "wrong");
    pull().env("REGISTRY_AUTH_FILE", dir.join("mine.json")).run().code(1).says("don't open it");
}

#[test]
fn tls_needs_a_certificate_that_is_trusted() {
    if !have("tls_needs_a_certificate_that_is_trusted", &["docker-registry", "skopeo", "umoci", "openssl"]) {
        return;
    }
    let store = Store::new();
    let dir = store.dir();
    umoci_layout(dir);
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    words(dir, &format!("openssl req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=test-ca"));
    words(dir, &format!("openssl req {key} -keyout key.pem -out request.pem -subj /CN=registry"));
    fs::write(dir.join("names"), "subjectAltName=DNS:registry.example,IP:127.0.0.1\n").unwrap();
    words(
        dir,
        "openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out cert.pem",
    );
    let tls = json!({"tls": {"certificate": dir.join("cert.pem"), "key": dir.join("key.pem")}});
    let registry = Registry::start(dir, &tls, &Value::Null);
    registry.push(dir, "", "oci:layout:app", "app");
    let name = registry.name("app");
    let ca = dir.join("ca.pem");
    let trusting = |words: &[&str]| store.pull(words).env("SSL_CERT_FILE", &ca);
    // No plain HTTP in place of a bad certificate.
    let other = dir.join("other.pem");
    words(dir, &format!("openssl req -x509 {key} -keyout other.key -out other.pem -days 30 -subj /CN=other"));
    for words in [&[name.as_str()][..], &["--insecure-registry", name.as_str()]] {
        let refused = store.pull(words).env("SSL_CERT_FILE", &other).run().code(1);
        refused.says("invalid peer certificate: UnknownIssuer");
    }
    let none = store.pull(&["registry.example/app"]).env("SSL_CERT_FILE", dir.join("none")).run().code(1);
    none.says("there are no root certificates in").says("install ca-certificates, or set SSL_CERT_FILE");
    trusting(&[&name]).run().output();
    // Another machine's, through a proxy, and under a name that the certificate doesn't have.
    let proxy = Proxy::start(registry.address);
    let through = |name: &str| trusting(&[name]).env("HTTPS_PROXY", proxy.url());
    through("registry.example/app").run().output();
    assert!(proxy.asked().iter().all(|asked| asked == "CONNECT registry.example:443 HTTP/1.1"));
    through("other.example/app")
        .run()
        .code(1)
        .says("invalid peer certificate: certificate not valid for name");
    // Its token server has no TLS: nothing is sent there, with --insecure-registry neither.
    let thief = Server::start(|_| Reply::new(200, r#"{"token": "t"}"#));
    let token = json!({"token": {"realm": format!("http://{}/token", thief.address), "service": "x", "issuer": "x",
        "rootcertbundle": ca}});
    let registry = Registry::start(dir, &tls, &token);
    let entry = json!({"username": "user", "password": "word"});
    fs::create_dir_all(dir.join("home/.docker")).unwrap();
    let auths = json!({"auths": {registry.address.to_string(): entry}});
    fs::write(dir.join("home/.docker/config.json"), auths.to_string()).unwrap();
    let name = registry.name("app");
    for words in [&[name.as_str()][..], &["--insecure-registry", name.as_str()]] {
        trusting(words).run().code(1).says(&format!("leads to http://{}/token, without TLS", thief.address));
    }
    assert_eq!(thief.seen().len(), 0);
}
