//! The page that `bothy bench --html` writes, drawn again from figures on file, in a real browser
//! at three widths.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::make::have;
use crate::store::Store;

/// A phone's, a tablet's and a desk's, in CSS pixels.
const WIDTHS: [u32; 3] = [390, 800, 1280];

fn chromium(words: &[&str], page: &Path, dir: &Path) -> String {
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
    ]);
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    let output =
        command.args(words).arg(format!("file://{}", page.display())).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_report_fits_a_phone_a_tablet_and_a_desk() {
    if !have("reports", &["chromium"]) {
        return;
    }
    let store = Store::new();
    let figures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/bench.json");
    let words = ["bench", "--from", figures.to_str().unwrap(), "--html", "report.html"];
    store.bothy(words).run().output();
    let page = fs::read_to_string(store.dir().join("report.html")).unwrap();
    // The browser itself says what it made of it.
    let asking = page.replace(
        "</body>",
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, \
         document.querySelectorAll('svg.strip').length, document.querySelectorAll('table tr').length, \
         getComputedStyle(document.body).backgroundColor].join(' ');</script></body>",
    );
    let path = store.dir().join("asking.html");
    fs::write(&path, asking).unwrap();
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-out/report");
    fs::create_dir_all(&shots).unwrap();
    for width in WIDTHS {
        let size = format!("--window-size={width},1000");
        let dom = chromium(&[&size, "--dump-dom"], &path, store.dir());
        let title = dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap();
        let said: Vec<&str> = title.splitn(5, ' ').collect();
        let number = |place: usize| said[place].parse::<u32>().unwrap_or_else(|_| panic!("{title}"));
        assert!(number(0) <= number(1), "{width}: the page is {} wide in a window of {}", said[0], said[1]);
        assert!(number(2) >= 8 && number(3) >= 5, "{width}: {title}");
        let shot = shots.join(format!("{width}.png"));
        let to = format!("--screenshot={}", shot.display());
        chromium(
            &[&format!("--window-size={width},2400"), &to],
            &store.dir().join("report.html"),
            store.dir(),
        );
        let bytes = fs::read(&shot).unwrap();
        // The header says how wide the picture is.
        assert_eq!(bytes[16..20], width.to_be_bytes(), "{}", shot.display());
        assert!(bytes.len() > 20_000, "{} is nearly empty", shot.display());
    }
}

#[test]
fn what_is_no_result_is_refused_in_one_line() {
    let store = Store::new();
    let refused = |content: &str, why: &str| {
        fs::write(store.dir().join("x.json"), content).unwrap();
        store.bothy(["bench", "--from", "x.json"]).run().code(1).says(why);
    };
    refused("nothing", "is not JSON");
    refused("{}", "is not what bothy bench --json writes");
    refused("{\"version\": 99}", "has version 99");
    refused("{\"version\": 1}", "is damaged");
    store.bothy(["bench", "--from", "absent"]).run().code(1).says("can't read absent");
    store.bothy(["bench", "--html", "no/such/dir.html"]).run().code(1).says("there is no no/such");
}
