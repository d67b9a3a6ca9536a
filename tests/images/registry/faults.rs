//! Registries that break off, are busy, or lie.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::server::{Reply, Request, Server, registry};
use super::{image, loaded, rootfs};
use crate::make::{Layout, noise, sha256};
use crate::store::{Store, count};
use crate::support::signal;

#[test]
fn a_download_goes_on_where_the_connection_broke() {
    let store = Store::new();
    let (layout, digests) = image(&store, 2, 1_000_000);
    let good = registry(&layout);
    let server = Server::start(move |request| {
        let reply = good(request);
        if !request.is_blob() || reply.body.len() < 300_000 {
            return reply;
        }
        Reply { cut: Some(300_000), ..reply }
    });
    store.pulled(&server.name("app"));
    assert_eq!(rootfs(&store), loaded(&layout));
    let mut from: Vec<usize> = server
        .seen()
        .iter()
        .filter(|request| request.path.ends_with(&digests[0]))
        .map(Request::from)
        .collect();
    assert_eq!(from[0], 0);
    from.dedup();
    assert_eq!(from.len(), 4, "every request asks for more: {from:?}");
    assert!(from.is_sorted() && from[1] > 250_000, "{from:?}");
}

#[test]
fn a_stream_without_a_length_goes_on_as_well() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1_000_000);
    let (good, tries) = (registry(&layout), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let mut reply = Reply { chunked: true, ..good(request) };
        if request.is_blob() && reply.body.len() > 300_000 {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0 => reply.cut = Some(300_000),
                // It ends well, but too early.
                1 => reply.body.truncate(300_000),
                _ => {}
            }
        }
        reply
    });
    store.pulled(&server.name("app"));
    assert_eq!(rootfs(&store), loaded(&layout));
    assert_eq!(server.seen().iter().filter(|request| request.from() > 0).count(), 2);
}

#[test]
fn a_server_without_ranges_is_read_again_from_the_beginning() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1_000_000);
    let (good, tries) = (registry(&layout), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let mut whole = request.clone();
        whole.headers.remove("range");
        let reply = good(&whole);
        if !request.is_blob() || reply.body.len() < 300_000 {
            return reply;
        }
        let cut = [Some(300_000), Some(100_000), None][tries.fetch_add(1, Ordering::Relaxed).min(2)];
        Reply { cut, ..reply }
    });
    store.pulled(&server.name("app"));
    assert_eq!(rootfs(&store), loaded(&layout));
}

#[test]
fn a_connection_that_always_breaks_is_given_up_and_the_next_pull_goes_on() {
    let store = Store::new();
    let (layout, digests) = image(&store, 2, 300_000);
    let (good, bad) = (registry(&layout), digests[1].clone());
    let server = Server::start(move |request| {
        let reply = good(request);
        if request.path.ends_with(&bad) && request.is_blob() {
            Reply { cut: Some(1000), ..reply }
        } else {
            reply
        }
    });
    let refused = store.pull(&[&server.name("app")]).run().code(1);
    refused.says(&format!("can't get {}: can't talk to 127.0.0.1:", digests[1]));
    let tries = server.seen().iter().filter(|request| request.path.ends_with(&digests[1])).count();
    assert_eq!(tries, 5);
    let mut kept: Vec<_> =
        store.files("blobs").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    kept.retain(|name| name.to_str().unwrap() == digests[0].replace(':', "-"));
    assert_eq!(kept.len(), 1, "the good layer is kept");
    assert_eq!((store.files("rootfs").len(), store.files("tmp").len()), (0, 0));
    let well = Server::start(registry(&layout));
    store.pulled(&well.name("app"));
    assert!(!well.blobs().keys().any(|path| path.ends_with(&digests[0])), "it is not downloaded again");
    assert_eq!(rootfs(&store), loaded(&layout));
}

#[test]
fn a_registry_that_is_busy_is_waited_for_as_long_as_it_says() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let (good, tries) = (registry(&layout), AtomicUsize::new(0));
    let server = Server::start(move |request| match tries.fetch_add(1, Ordering::Relaxed) {
        1 => Reply::new(429, "").with("Retry-After", "1"),
        3 => Reply::new(503, ""),
        _ => good(request),
    });
    let start = Instant::now();
    store.pulled(&server.name("app"));
    assert!(start.elapsed() > Duration::from_secs(1));
    let server = Server::start(|_| Reply::new(429, "").with("Retry-After", "3600"));
    let refused = store.pull(&[&server.name("app")]).run().code(1);
    refused.says("is busy (HTTP status 429 for app:latest); try again in 3600 s");
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn nothing_of_a_blob_that_lies_gets_into_the_store() {
    type Lie = fn(Reply) -> Reply;
    let lies: [(&str, Lie); 8] = [
        ("is longer than the", |mut reply| {
            reply.body.push(0);
            Reply { chunked: true, ..reply }
        }),
        ("is damaged", |mut reply| {
            reply.body[700] ^= 1;
            reply
        }),
        ("comes with 3584 bytes instead of", |mut reply| {
            reply.body.truncate(3584);
            reply
        }),
        ("bytes instead of", |mut reply| {
            reply.body.push(0);
            reply
        }),
        ("comes with 18446744073709551615 bytes", |reply| Reply { len: Some(usize::MAX), ..reply }),
        ("comes with another part", |reply| {
            Reply { status: 206, ..reply }.with("Content-Range", "bytes 5-9/10")
        }),
        ("HTTP status 418 for app@sha256:", |reply| Reply { status: 418, ..reply }),
        ("has no app@sha256:", |reply| Reply { status: 404, ..reply }),
    ];
    for (part, lie) in lies {
        let store = Store::new();
        let (layout, digests) = image(&store, 1, 20_000);
        let good = registry(&layout);
        let server = Server::start(move |request| {
            let reply = good(request);
            if request.path.ends_with(&digests[0]) { lie(reply) } else { reply }
        });
        store.pull(&[&server.name("app")]).run().code(1).says(part);
        assert_eq!(server.blobs().values().max(), Some(&1), "{part}: asked once");
        for part in ["names", "images", "rootfs", "tmp"] {
            assert_eq!(store.files(part).len(), 0, "{part}");
        }
        let left = store.files("blobs");
        assert!(!left.iter().any(|path| fs::metadata(path).unwrap().len() > 15_000), "{part}: {left:?}");
    }
}

#[test]
fn nothing_is_left_of_an_image_whose_layer_is_another_one() {
    let store = Store::new();
    let layout = Layout::new(store.dir().join("layout"));
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &noise(10_240));
    layout.index(&[layout.image("amd64", &[sha256(b"x")], &[layer])]);
    let server = Server::start(registry(&layout));
    store.pull(&[&server.name("app")]).run().code(1);
    store.is_empty();
}

#[test]
fn documents_that_lie_are_refused() {
    let oci = |kind: &str| format!("application/vnd.oci.image.{kind}.v1+json");
    let descriptor =
        |digest: &str, size: u64, kind: &str| json!({"digest": digest, "size": size, "mediaType": oci(kind)});
    let zeros = format!("sha256:{}", "0".repeat(64));
    let huge = json!({"schemaVersion": 2, "config": descriptor(&zeros, 2, "config"), "layers": [descriptor(&zeros, u64::MAX, "layer")],
        "annotations": {"x": "y".repeat(4 << 20)}});
    let long_config =
        json!({"schemaVersion": 2, "config": descriptor(&zeros, 5 << 20, "config"), "layers": []});
    for (kind, body, part) in [
        ("manifest", huge.to_string(), "app:latest is longer than 4194304 bytes"),
        ("manifest", long_config.to_string(), "is longer than 4 MiB"),
        ("manifest", "{".into(), "is malformed"),
        ("index", long_config.to_string(), "neither a clear image manifest nor a clear index"),
        ("manifest", r#"{"schemaVersion": 1, "fsLayers": []}"#.into(), "schema 1, which is not supported"),
        ("index", r#"{"schemaVersion": 2, "manifests": []}"#.into(), "has no image for linux/amd64"),
    ] {
        let store = Store::new();
        let server = Server::start(move |_| Reply::new(200, body.clone()).with("Content-Type", oci(kind)));
        store.pull(&[&server.name("app")]).run().code(1).says(part);
        store.is_empty();
    }
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let server = Server::start(registry(&layout));
    let wrong = format!("app@sha256:{}", "1".repeat(64));
    store.pull(&[&server.name(&wrong)]).run().code(1).says("has no app@sha256:1111");
    let good = registry(&layout);
    let server = Server::start(move |request| {
        let mut reply = good(request);
        if !request.is_blob() {
            reply.headers.retain(|(name, _)| *name != "Docker-Content-Digest");
            reply.body.push(b' ');
        }
        reply
    });
    let index = fs::read(layout.dir.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let right = format!("app@{}", index["manifests"][0]["digest"].as_str().unwrap());
    store.pull(&[&server.name(&right)]).run().code(1).says("is damaged");
    store.is_empty();
}

#[test]
fn entries_of_an_index_that_can_not_be_used_are_not_asked_for() {
    let store = Store::new();
    let (layout, _) = image(&store, 1, 1000);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
    let mut good = index["manifests"][0].clone();
    let missing = json!({"digest": sha256(b"missing"), "size": 7, "platform": {}});
    let odd = json!({"digest": "blake3:00", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}});
    for (is_stated, requests) in [(true, 4), (false, 5)] {
        if is_stated {
            good["platform"] = json!({"os": "linux", "architecture": "amd64"});
        } else {
            good["platform"] = json!(null);
        }
        let manifests = json!([odd, missing, good]);
        layout.index(&[layout.document("index", &json!({"schemaVersion": 2, "manifests": manifests}))]);
        let server = Server::start(registry(&layout));
        let store = Store::new();
        store.pulled(&server.name("app"));
        // The index, the manifest, its configuration, its layer; and what may be for this platform,
        // or not.
        let seen: Vec<_> = server.seen().into_iter().map(|request| request.path).collect();
        assert_eq!(seen.len(), requests + usize::from(!is_stated), "{seen:?}");
    }
}

/// Web servers, and proxies that want a login.
#[test]
fn a_web_page_is_no_answer_and_is_not_printed() {
    const PAGE: &str =
        "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>secret</body></html>";
    let html = |status| Reply::new(status, PAGE).with("Content-Type", "text/html; charset=utf-8");
    let says = |status: u16, what: &str| {
        format!(
            "sent a web page (HTTP status {status}) in place of {what}: it may not be a registry, or a proxy"
        )
    };
    let check = |server: &Server, part: &str| {
        let store = Store::new();
        let refused = store.pull(&[&server.name("app")]).run().code(1);
        assert!(!refused.stderr.contains("secret") && !refused.stderr.contains('<'), "{}", refused.stderr);
        assert!(refused.stderr.contains("127.0.0.1:"), "{}", refused.stderr);
        refused.says(part);
        for part in ["names", "images", "rootfs", "tmp"] {
            assert_eq!(store.files(part).len(), 0, "{part}");
        }
    };
    for status in [200, 403, 404, 418, 511] {
        let server = Server::start(move |_| html(status));
        check(&server, &says(status, "app:latest"));
        assert_eq!(server.seen().len(), 1, "{status}: once");
    }
    // Without the right type, and with it but no page.
    check(&Server::start(|_| Reply::new(200, PAGE)), &says(200, "app:latest"));
    check(&Server::start(|_| Reply::new(200, "{").with("Content-Type", "text/html")), "is malformed");
    check(&Server::start(|_| Reply::new(404, "<?xml version=\"1.0\"?><Error/>")), "has no app:latest");
    // What stands in front of a registry writes pages, too, but says what it wants.
    let wants = Server::start(move |_| html(401).with("WWW-Authenticate", "Basic realm=x"));
    check(&wants, "it needs credentials");
    // Where a token, a layer, or what a redirect leads to should be.
    let page = Server::start(move |_| html(200));
    let realm = format!("Bearer realm=\"http://{}/token\"", page.address);
    let server = Server::start(move |_| Reply::new(401, "").with("WWW-Authenticate", realm.clone()));
    check(&server, &says(200, "a token"));
    let store = Store::new();
    let (layout, digests) = image(&store, 1, 1000);
    let good = registry(&layout);
    let layer = digests[0].clone();
    let server =
        Server::start(move |request| if request.path.ends_with(&layer) { html(200) } else { good(request) });
    check(&server, &says(200, &digests[0]));
    let to = format!("http://{}/login", page.address);
    let server = Server::start(move |_| Reply::redirect(to.clone()));
    let store = Store::new();
    store.pull(&[&server.name("app")]).run().code(1).says(&format!("{} sent a web page", page.address));
}

#[test]
fn indexes_have_an_end() {
    let store = Store::new();
    let layout = Layout::new(store.dir().join("layout"));
    let mut index = layout.image("amd64", &[], &[]);
    for _ in 0..8 {
        index = layout.document("index", &json!({"schemaVersion": 2, "manifests": [index]}));
    }
    layout.index(&[index]);
    let server = Server::start(registry(&layout));
    store.pull(&[&server.name("app")]).run().code(1).says("nested too deep or name too many manifests");
    assert!(server.seen().len() < 10);
    store.is_empty();
}

#[test]
fn a_pull_can_be_killed_at_any_moment() {
    let store = Store::new();
    let (layout, _) = image(&store, 4, 1_000_000);
    let server = Server::start(registry(&layout));
    let name = server.name("app");
    let begin = Instant::now();
    store.pulled(&name);
    let (whole, good) = (begin.elapsed(), rootfs(&store));
    for moment in 0..u32::try_from(count(10, 100)).unwrap() {
        store.bothy(["prune", "--all"]).run().code(0);
        let running = store.pull(&[&name]).start();
        std::thread::sleep(whole.mul_f64((f64::from(moment) * 0.618_034).fract()));
        signal(running.pid(), libc::SIGKILL);
        drop(running.wait());
        for file in store.files("rootfs") {
            assert!(fs::read(&file).unwrap() == good, "{}", file.display());
        }
        for file in store.files("blobs") {
            let digest = file.file_name().unwrap().to_str().unwrap().replace('-', ":");
            assert_eq!(sha256(&fs::read(&file).unwrap()), digest, "whole or not there");
        }
    }
    store.pull(&[&name]).run().output();
    assert!(rootfs(&store) == good && store.files("tmp").is_empty());
    store.bothy(["prune"]).run().code(0);
    assert_eq!(store.files("blobs").len(), 0);
}

#[test]
fn pulls_at_once_download_once() {
    for round in 0..count(3, 20) {
        let store = Store::new();
        let (layout, _) = image(&store, 3, 2_000_000);
        let good = registry(&layout);
        let server = Server::start(move |request| {
            if request.is_blob() {
                std::thread::sleep(Duration::from_millis(100));
            }
            good(request)
        });
        let name = server.name("app");
        let running: Vec<_> = (0..3).map(|_| store.pull(&[&name]).start()).collect();
        let said: Vec<_> =
            running.into_iter().map(|pull| String::from_utf8(pull.wait().output()).unwrap()).collect();
        let built = said.iter().filter(|said| !said.contains("was there already")).count();
        assert_eq!(built, 1, "round {round}: {said:?}");
        let blobs = server.blobs();
        assert_eq!(blobs.len(), 4, "{blobs:?}");
        assert!(blobs.values().all(|times| *times == 1), "round {round}: {blobs:?}");
        assert_eq!(rootfs(&store), loaded(&layout));
        for part in ["blobs", "tmp", "locks"] {
            assert_eq!(store.files(part).len(), 0, "{part}");
        }
        let before = server.seen().len();
        assert!(store.pulled(&name).contains("was there already"));
        assert_eq!(server.seen().len(), before + 1, "the manifest alone tells");
    }
}
