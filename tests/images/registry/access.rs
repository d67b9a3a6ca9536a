//! Who we say that we are, and to whom.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::server::{Reply, Request, Server, registry};
use super::{image, loaded, rootfs};
use crate::make::Layout;
use crate::store::Store;
use crate::support::could_not_run;

/// `user:word` in base64.
const BASIC: &str = "Basic dXNlcjp3b3Jk";

/// What `docker login` would leave.
fn logged_in(store: &Store, json: &str) {
    fs::create_dir_all(store.dir().join("home/.docker")).unwrap();
    fs::write(store.dir().join("home/.docker/config.json"), json).unwrap();
}

fn auths(server: &Server, entry: &str) -> String {
    format!(r#"{{"auths": {{"{}": {{{entry}}}}}}}"#, server.address)
}

/// A token server that takes `right`, and numbers its tokens.
fn token_server(right: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Server {
    let number = AtomicUsize::new(0);
    Server::start(move |request| {
        if !right(request) {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"tokens\"");
        }
        // Either field will do.
        let number = number.fetch_add(1, Ordering::Relaxed);
        Reply::new(
            200,
            match number % 2 {
                0 => format!(r#"{{"token": "t{number}", "access_token": null, "expires_in": null}}"#),
                _ => format!(r#"{{"token": null, "access_token": "t{number}"}}"#),
            },
        )
    })
}

/// A registry that takes each token for a few requests.
fn token_registry(layout: &Layout, realm: String) -> Server {
    let (good, uses) = (registry(layout), AtomicUsize::new(0));
    Server::start(move |request| {
        let token = format!("Bearer t{}", uses.load(Ordering::Relaxed) / 3);
        if request.path != "/v2/" && request.header("authorization") == token {
            uses.fetch_add(1, Ordering::Relaxed);
            return good(request);
        }
        let challenge =
            format!(r#"Bearer realm="{realm}",service="the registry",scope="registry:catalog:*""#);
        Reply::new(401, "").with("WWW-Authenticate", challenge)
    })
}

#[test]
fn a_token_is_had_for_a_password_and_renewed_when_it_is_no_longer_taken() {
    let store = Store::new();
    let (layout, _) = image(&store, 6, 100_000);
    let tokens = token_server(|request| request.header("authorization") == BASIC);
    let server = token_registry(&layout, format!("http://{}/token?x=1", tokens.address));
    logged_in(&store, &auths(&server, r#""auth": "dXNlcjp3b3Jk""#));
    store.pull(&["--insecure-registry", &server.name("me/app")]).run().output();
    assert_eq!(rootfs(&store), loaded(&layout));
    let asked = tokens.seen();
    assert!(asked.len() >= 2, "the first one lasts for three requests");
    for request in &asked {
        assert_eq!(
            request.path,
            "/token?x=1&scope=repository:me/app:pull&service=the%20registry&account=user"
        );
    }
    assert!(server.seen().iter().all(|request| !request.header("authorization").starts_with("Basic")));
}

#[test]
fn a_token_is_had_without_credentials_or_for_an_identity() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let tokens =
        token_server(|request| request.header("authorization").is_empty() && request.method == "GET");
    let server = token_registry(&layout, format!("http://{}/token", tokens.address));
    store.pulled(&server.name("app"));
    assert!(!tokens.seen()[0].path.contains("account"));
    let store = Store::new();
    let tokens = token_server(|request| {
        request.method == "POST"
            && request.header("authorization").is_empty()
            && ["grant_type=refresh_token", "refresh_token=se%2Fcret", "service=the+registry"]
                .iter()
                .all(|part| request.body.split('&').any(|pair| pair == *part))
    });
    let server = token_registry(&layout, format!("http://{}/token", tokens.address));
    logged_in(&store, &auths(&server, r#""auth": "PHRva2VuPjo=", "identitytoken": "se/cret""#));
    store.pull(&["--insecure-registry", &server.name("app")]).run().output();
}

#[test]
fn credentials_that_are_missing_or_wrong_are_named() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let tokens = token_server(|request| request.header("authorization") == BASIC);
    let with_tokens = token_registry(&layout, format!("http://{}/token", tokens.address));
    let with_password = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"));
    let silent = Server::start(|_| Reply::new(401, ""));
    for server in [&with_tokens, &with_password, &silent] {
        let refused = store.pull(&["--insecure-registry", &server.name("app")]).run().code(1);
        refused.says("it needs credentials (docker login 127.0.0.1:");
    }
    for server in [&with_tokens, &with_password] {
        logged_in(&store, &auths(server, r#""username": "user", "password": "other""#));
        let refused = store.pull(&["--insecure-registry", &server.name("app")]).run().code(1);
        assert!(!refused.stderr.contains("other;"), "{}", refused.stderr);
        refused.says("don't open it");
    }
    let tries = with_password.seen().len();
    assert_eq!(tries, 1 + 2, "once without, and once each with and without");
    store.is_empty();
}

#[test]
fn a_helper_is_asked_for_its_registry() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let good = registry(&layout);
    let server = Server::start(move |request| {
        if request.header("authorization") == BASIC {
            return good(request);
        }
        Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"")
    });
    let bin = store.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-bothy-test");
    let script = format!(
        "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {}' ] && echo '{{\"Username\": \"user\", \"Secret\": \"word\"}}' && exit\n\
         echo credentials not found in native keychain; exit 1\n",
        server.address
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for json in [
        format!(r#"{{"credHelpers": {{"{}": "bothy-test"}}}}"#, server.address),
        r#"{"credsStore": "bothy-test"}"#.to_owned(),
    ] {
        logged_in(&store, &json);
        store.pull(&["--insecure-registry", &server.name("app")]).env("PATH", &path).run().output();
    }
    // It has nothing for this one.
    let other = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
    let refused = store.pull(&["--insecure-registry", &other.name("app")]).env("PATH", &path).run().code(1);
    refused.says("it needs credentials");
}

#[test]
fn another_host_gets_no_credentials_and_may_not_ask_for_them() {
    let store = Store::new();
    let (layout, _) = image(&store, 2, 1000);
    let good = registry(&layout);
    let elsewhere = Arc::new(Server::start(registry(&layout)));
    let start = |to: Arc<Server>| {
        let good = good.clone();
        Server::start(move |request| {
            if request.header("authorization") != BASIC {
                return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
            }
            if request.is_blob() {
                return Reply::redirect(format!("http://{}{}", to.address, request.path));
            }
            good(request)
        })
    };
    let server = start(elsewhere.clone());
    logged_in(&store, &auths(&server, r#""auth": "dXNlcjp3b3Jk""#));
    store.pull(&["--insecure-registry", &server.name("app")]).run().output();
    assert_eq!(rootfs(&store), loaded(&layout));
    assert_eq!(elsewhere.seen().len(), 3);
    assert!(elsewhere.seen().iter().all(|request| !request.headers.contains_key("authorization")));
    // One that asks, with the words of a token server of its own.
    let thief = Arc::new(Server::start(|request| {
        let host = request.header("host");
        Reply::new(401, "").with("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token""#))
    }));
    let server = start(thief.clone());
    let store = Store::new();
    logged_in(&store, &auths(&server, r#""auth": "dXNlcjp3b3Jk""#));
    let pull = store.pull(&["--insecure-registry", &server.name("app")]);
    pull.run().code(1).says(&format!("{} refuses app@sha256:", thief.address));
    assert!(!thief.seen().is_empty());
    assert!(
        thief
            .seen()
            .iter()
            .all(|request| request.is_blob() && !request.headers.contains_key("authorization"))
    );
    store.is_empty();
}

/// Whoever takes the port of a registry on this machine must not get the password that is saved for
/// it.
#[test]
fn saved_credentials_are_not_for_plain_http_unless_the_user_says_so() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let asked = |basic: bool| {
        let realm = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"));
        let challenge = match basic {
            true => "Basic realm=x".to_owned(),
            false => format!("Bearer realm=\"http://{}/token\",service=x", realm.address),
        };
        (Server::start(move |_| Reply::new(401, "").with("WWW-Authenticate", challenge.clone())), realm)
    };
    // A helper that leaves a trace when it is asked.
    let bin = store.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-bothy-trace");
    let trace = store.dir().join("asked");
    fs::write(&helper, format!("#!/bin/sh\ntouch {}\necho '{{}}'\n", trace.display())).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for basic in [true, false] {
        let (server, realm) = asked(basic);
        for json in [
            auths(&server, r#""auth": "dXNlcjp3b3Jk""#),
            auths(&server, r#""identitytoken": "secret""#),
            auths(&server, r#""registrytoken": "secret""#),
            format!(r#"{{"credHelpers": {{"{}": "bothy-trace"}}}}"#, server.address),
            r#"{"credsStore": "bothy-trace"}"#.to_owned(),
        ] {
            logged_in(&store, &json);
            let refused = store.pull(&[&server.name("app")]).env("PATH", &path).run().code(1);
            refused.says("saved ones are sent without TLS only with --insecure-registry");
            for request in server.seen().iter().chain(&realm.seen()) {
                assert!(!request.headers.contains_key("authorization"), "{json}: {request:?}");
                assert!(!request.path.contains("account") && request.method == "GET", "{json}: {request:?}");
            }
            assert!(!trace.exists(), "{json}");
        }
        // With the flag the helper is asked, here for nothing.
        store.pull(&["--insecure-registry", &server.name("app")]).env("PATH", &path).run().code(1);
        assert!(trace.exists());
        fs::remove_file(&trace).unwrap();
    }
    // What needs no password is pulled as before, with a token that anybody gets.
    let tokens = token_server(|request| request.header("authorization").is_empty());
    let server = token_registry(&layout, format!("http://{}/token", tokens.address));
    logged_in(&store, &auths(&server, r#""auth": "dXNlcjp3b3Jk""#));
    store.pulled(&server.name("app"));
    assert!(!tokens.seen()[0].path.contains("account"));
}

/// No server of names decides where they are (RFC 6761).
#[test]
fn names_below_localhost_are_this_machine() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let server = Server::start(registry(&layout));
    for host in ["localhost", "registry.localhost", "a.b.localhost"] {
        let name = format!("{host}:{}/app", server.address.port());
        store.pulled(&name);
        assert!(store.names().contains(&format!("{name}:latest")));
    }
    let by_ipv6 = TcpListener::bind("[::1]:0");
    match by_ipv6 {
        Ok(listener) => {
            let server = Server::on(listener, registry(&layout));
            store.pulled(&format!("x.localhost:{}/app", server.address.port()));
        }
        Err(error) => could_not_run("names_below_localhost_are_this_machine", &format!("(IPv6) {error}")),
    }
}

#[test]
fn another_host_can_not_lead_back_to_what_needs_credentials() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let good = registry(&layout);
    let address: Arc<OnceLock<SocketAddr>> = Arc::default();
    let to = address.clone();
    let elsewhere = Server::start(move |_| Reply::redirect(format!("http://{}/private", to.get().unwrap())));
    let lead = elsewhere.address;
    let server = Server::start(move |request| {
        if request.path == "/private" {
            return Reply::new(404, "");
        }
        if request.header("authorization") != BASIC {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if request.is_blob() {
            return Reply::redirect(format!("http://{lead}/"));
        }
        good(request)
    });
    address.set(server.address).unwrap();
    logged_in(&store, &auths(&server, r#""auth": "dXNlcjp3b3Jk""#));
    store.pull(&["--insecure-registry", &server.name("app")]).run().code(1);
    let seen = server.seen();
    let private: Vec<_> = seen.iter().filter(|request| request.path == "/private").collect();
    assert!(
        !private.is_empty() && private.iter().all(|request| !request.headers.contains_key("authorization"))
    );
}

#[test]
fn redirects_are_counted_and_lead_to_good_addresses_only() {
    for (to, part) in [
        ("/v2/app/manifests/round", "more than 5 redirects"),
        (
            "http://registry.example/x",
            "leads to http://registry.example/x, without TLS: only --insecure-registry allows that",
        ),
        (
            "http://registry.example/x?X-Amz-Signature=secret",
            "leads to http://registry.example/x, without TLS: only --insecure-registry allows that",
        ),
        ("file:///etc/passwd", "a redirect to no address"),
        ("http://user:word@127.0.0.1/", "a redirect to no address"),
        ("", "a redirect to no address"),
    ] {
        let store = Store::new();
        let server = Server::start(move |_| Reply::redirect(to));
        let refused = store.pull(&[&server.name("app")]).run().code(1).says(part);
        assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
        assert!(server.seen().len() <= 6);
    }
}

#[test]
fn token_servers_that_misbehave_are_refused() {
    let long = format!(r#"{{"token": "{}"}}"#, "x".repeat(300_000));
    for (reply, part) in [
        (Reply::new(200, long), "its token is too long"),
        (Reply::new(200, "<html>"), "sent a web page (HTTP status 200) in place of a token"),
        (Reply::new(200, "{}"), "there is no token in it"),
        (Reply::new(200, r#"{"token": null, "access_token": null}"#), "there is no token in it"),
        (Reply::new(200, r#"{"token": ["a"]}"#), "its token is not JSON"),
        (Reply::new(200, r#"{"token": "a\r\nX: y"}"#), "its token is none"),
        (Reply::redirect("/elsewhere"), "answers with HTTP status 307"),
    ] {
        let store = Store::new();
        let (layout, _) = image(&store, 1, 1000);
        let tokens = Server::start(move |_| reply.clone());
        let server = token_registry(&layout, format!("http://{}/token", tokens.address));
        store.pull(&[&server.name("app")]).run().code(1).says(part);
        assert_eq!(tokens.seen().len(), 1);
    }
    for (realm, part) in [
        ("http://registry.example/token", "leads to http://registry.example/token, without TLS"),
        ("ldap://127.0.0.1/", "its token server has no good address"),
    ] {
        let store = Store::new();
        let (layout, _) = image(&store, 1, 1000);
        let server = token_registry(&layout, realm.into());
        store.pull(&[&server.name("app")]).run().code(1).says(part);
    }
}
