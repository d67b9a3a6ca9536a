//! `bothy images`: what is in the store, as a table or as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::json;

use super::{Failure, print, size};
use crate::image::{Image, ImageSummary, Store};

const DAY: i64 = 86_400;

/// Prints the images, by name.
pub(super) fn images(as_json: bool) -> Result<u8, Failure> {
    let store = Store::open().context("can't open the store")?;
    let images = store.images().context("can't list the images")?;
    if !as_json {
        print(&table(&images, seconds(SystemTime::now())))?;
        return Ok(0);
    }
    // One by one, because configurations may be long.
    let mut before = "[";
    for summary in &images {
        // It may be gone by now.
        let Some(image) = store.image(summary).context("can't list the images")? else { continue };
        let text = format!("{:#}", entry(summary, &image));
        print(&format!("{before}\n  {}", text.replace('\n', "\n  ")))?;
        before = ",";
    }
    print(if before == "[" { "[]\n" } else { "\n]\n" })?;
    Ok(0)
}

fn entry(summary: &ImageSummary, image: &Image) -> serde_json::Value {
    json!({
        "names": summary.names,
        "digest": image.digest,
        "size": summary.size,
        "platform": image.platform.to_string(),
        "created": image.created,
        "last_used": summary.last_used.map(|time| rfc3339(seconds(time))),
        "diff_ids": image.diff_ids,
        "rootfs": image.rootfs,
        "config": image.config,
    })
}

/// A line for each name, and one for an image that has none.
fn table(images: &[ImageSummary], now: i64) -> String {
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "CREATED", "LAST USED"].map(String::from)];
    for summary in images {
        let created = summary.created.as_deref().and_then(parse_rfc3339);
        let ago = |time: Option<i64>| time.map_or_else(|| "-".into(), |time| age(now - time));
        let unnamed = ["<none>".to_owned()];
        let names = if summary.names.is_empty() { &unnamed[..] } else { &summary.names };
        rows.extend(names.iter().map(|name| {
            [
                name.clone(),
                summary.digest.short().into(),
                size(summary.size),
                ago(created),
                ago(summary.last_used.map(seconds)),
            ]
        }));
    }
    let widths: [usize; 5] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Since 1970.
pub(super) fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

/// A duration in its largest unit: `3 days ago`.
fn age(seconds: i64) -> String {
    const UNITS: [(i64, &str); 6] = [
        (365 * DAY, "year"),
        (30 * DAY, "month"),
        (7 * DAY, "week"),
        (DAY, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    match UNITS.iter().find(|(length, _)| seconds >= *length) {
        Some((length, unit)) => {
            let n = seconds / length;
            format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
        }
        None => "just now".into(),
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: years begin in March, so that the day
/// too many is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 153 days in any five months from March; 1970-01-01 is day 719468 from March of year 0.
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// `2024-05-01T12:00:00.5Z`, or with an offset in place of the Z.
fn parse_rfc3339(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok().map(i64::from);
    let is_date =
        text.get(4..5)? == "-" && text.get(7..8)? == "-" && matches!(text.get(10..11)?, "T" | "t" | " ");
    let (month, day) = (number(5, 7)?, number(8, 10)?);
    if !is_date || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let time = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match (zone.get(..1)?, zone.get(1..3), zone.get(4..6)) {
        ("Z" | "z", ..) => 0,
        (sign @ ("+" | "-"), Some(hours), Some(minutes)) => {
            let seconds =
                i64::from(hours.parse::<u32>().ok()?) * 3600 + i64::from(minutes.parse::<u32>().ok()?) * 60;
            if sign == "-" { -seconds } else { seconds }
        }
        _ => return None,
    };
    Some(days(number(0, 4)?, month, day) * DAY + time - offset)
}

pub(super) fn rfc3339(seconds: i64) -> String {
    let (day, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Guessed from the mean length of a year, and at most one too late.
    let mut year = 1970 + day.div_euclid(365);
    while days(year, 1, 1) > day {
        year -= 1;
    }
    let month = (1..=12).rev().find(|month| days(year, *month, 1) <= day).unwrap_or(1);
    let day = day - days(year, month, 1) + 1;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_as_rfc_3339() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:34:56.789Z", Some(951_827_696)),
            ("2024-12-31T23:59:59+01:00", Some(1_735_685_999)),
            ("2024-01-01T00:00:00-05:30", Some(1_704_087_000)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800)),
            ("2024-13-01T00:00:00Z", None),
            ("yesterday", None),
            ("2024-01-01T00:00:00", None),
            ("2024-01-01T00:00:00\u{e9}", None),
            ("", None),
        ] {
            assert_eq!(parse_rfc3339(text), expected, "{text}");
        }
        for seconds in [0, 951_827_696, 1_735_685_999, 4_102_444_799, 68_256_000] {
            assert_eq!(parse_rfc3339(&rfc3339(seconds)), Some(seconds));
        }
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [
            (-5, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (2 * DAY, "2 days ago"),
            (400 * DAY, "1 year ago"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
