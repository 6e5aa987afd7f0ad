//! A picture as SVG: colours that read on light and on dark, and a background of its own.

use std::fmt::Write;

use crate::error::escape;
use crate::report::picture::{Band, Picture, Share, Shows, bounds, size, ticks};

/// Where bands begin and end, from the left.
const LEFT: f64 = 24.0;
const WIDTH: f64 = 952.0;
/// How high a band is, and how far it is from the top of one to the top of the next.
const HEIGHT: f64 = 36.0;
const STEP: f64 = 68.0;
/// Where the title of the first band stands.
const TOP: f64 = 62.0;
/// The most parts that a band is drawn in: each wide enough to be seen.
const PARTS: u64 = 640;
/// The most characters of a line.
const LINE: usize = 120;

const STYLE: &str = "
text { font: 13px sans-serif; fill: #333 } .heading { font-size: 16px; font-weight: bold } .small { font-size: 12px }
.paper { fill: #fff } .empty { fill: #eceff3 } .edge { fill: none; stroke: #8c96a3 } .grid { stroke: #8888; stroke-dasharray: 2 3 }
.data { fill: #0a66c2 } .differs { fill: #c2410c }
.trace { opacity: .3 } .little { opacity: .48 } .some { opacity: .66 } .much { opacity: .84 }
.differs.trace, .differs.little { opacity: .75 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .paper { fill: #0d1117 } .empty { fill: #21262d }
.edge { stroke: #6e7681 } .data { fill: #6cb6ff } .differs { fill: #ff8c4b } }
";

impl Picture {
    /// The picture as a document.
    pub fn svg(&self) -> String {
        let bottom = TOP + STEP * self.bands.len() as f64 - (STEP - HEIGHT - 10.0);
        let height = bottom + 76.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 {height:.0}\"><style>{STYLE}</style>\n\
             <rect class=\"paper\" width=\"1000\" height=\"{height:.0}\"/>\n"
        );
        put_text(&mut out, "heading", LEFT, 30.0, "start", &self.heading);
        for (nth, band) in self.bands.iter().enumerate() {
            let top = TOP + STEP * nth as f64;
            put_text(&mut out, "", LEFT, top, "start", &headline(band));
            self.put_band(&mut out, band, top + 10.0);
        }
        self.put_scale(&mut out, TOP + 10.0, bottom);
        self.put_legend(&mut out, bottom + 54.0);
        out.push_str("</svg>\n");
        out
    }

    fn put_band(&self, out: &mut String, band: &Band, top: f64) {
        let x = |bytes: u64| LEFT + WIDTH * bytes as f64 / self.length.max(1) as f64;
        let class = class_of(band.shows);
        let width = x(band.length) - LEFT;
        put_rect(out, "empty", LEFT, top, width, HEIGHT);
        let count = self.count.min(PARTS) as usize;
        let mut part = 0;
        while part < count {
            let first = part;
            let share = self.share(band, first, count);
            while part < count && self.share(band, part, count) == share {
                part += 1;
            }
            let Some(share) = share.filter(|share| *share != Share::None) else { continue };
            let bytes = bounds(self.length, count as u64, &(first as u64..part as u64));
            let (start, end) = (x(bytes.start), x(bytes.end.min(band.length)));
            put_rect(out, &format!("{class}{}", level(share)), start, top, end - start, HEIGHT);
        }
        put_rect(out, "edge", LEFT, top, width, HEIGHT);
    }

    fn put_scale(&self, out: &mut String, top: f64, bottom: f64) {
        let ticks = ticks(self.length);
        let last = ticks.len() - 1;
        for (nth, (at, text)) in ticks.iter().enumerate() {
            let x = LEFT + WIDTH * *at as f64 / self.length.max(1) as f64;
            // It does not bear on the result whether a document could be written to.
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.0}\" y2=\"{:.0}\"/>",
                bottom + 6.0
            );
            let anchor = match nth {
                0 => "start",
                _ if nth == last && x > LEFT + WIDTH - 40.0 => "end",
                _ => "middle",
            };
            put_text(out, "small", x, bottom + 22.0, anchor, text);
        }
    }

    fn put_legend(&self, out: &mut String, y: f64) {
        let mut x = LEFT;
        let mut put = |class: &str, text: &str, chars: f64| {
            put_rect(out, class, x, y - 11.0, 14.0, 14.0);
            if class == "empty" {
                put_rect(out, "edge", x, y - 11.0, 14.0, 14.0);
            }
            put_text(out, "small", x + 20.0, y, "start", text);
            x += 20.0 + chars * 6.6 + 18.0;
        };
        put("data", "data", 4.0);
        if self.bands.iter().any(|band| band.shows == Shows::Difference) {
            put("differs", "differs", 7.0);
        }
        put("empty", "hole or zeros", 12.0);
        let column = size(self.length.div_ceil(self.count.clamp(1, PARTS)));
        let text = format!("paler: a smaller part of a column, of which each is {column}");
        put_text(out, "small", LEFT + WIDTH, y, "end", &text);
    }
}

fn class_of(shows: Shows) -> &'static str {
    match shows {
        Shows::Data => "data",
        Shows::Difference => "differs",
    }
}

fn level(share: Share) -> &'static str {
    match share {
        Share::None | Share::Most => "",
        Share::Trace => " trace",
        Share::Little => " little",
        Share::Some => " some",
        Share::Much => " much",
    }
}

/// What stands above a band: the end of a title that is too long.
fn headline(band: &Band) -> String {
    let what = match band.shows {
        Shows::Data => format!("{} of data in {}", size(band.total), size(band.length)),
        Shows::Difference => size(band.total),
    };
    let room = LINE - what.len();
    let count = band.title.chars().count();
    let title = match count.checked_sub(room) {
        None | Some(0) => band.title.clone(),
        Some(more) => format!("…{}", band.title.chars().skip(more + 1).collect::<String>()),
    };
    format!(
        "{}{title}: {what}",
        if band.label == title { String::new() } else { format!("{}  ", band.label) }
    )
}

fn put_rect(out: &mut String, class: &str, x: f64, y: f64, width: f64, height: f64) {
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{y:.0}\" width=\"{width:.2}\" height=\"{height:.0}\"/>"
    );
}

fn put_text(out: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
    let text = escape(text.as_bytes()).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_any_size_stays_small_and_whole() {
        for length in [0, 1, 12_345, 100 << 30, u64::MAX] {
            let mut picture = Picture::new(length);
            picture.set_heading("<a> & \u{1b}".into());
            let a = picture.add_band("A", &"long/".repeat(100), Shows::Data, length);
            let b = picture.add_band("differs", "differs", Shows::Difference, length / 2);
            let step = length / 3000 + 1;
            for nth in 0..length.min(3000) {
                picture.mark(a, &(nth * step..(nth * step + step / 2 + 1).min(length).max(nth * step)));
            }
            picture.mark(b, &(0..length / 3));
            let svg = picture.svg();
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.len() < 400_000, "{length}");
            assert!(svg.contains("&lt;a&gt; &amp; \\#033"), "{length}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{length}");
            let lines = svg.lines().filter(|line| line.starts_with("<rect") || line.starts_with("<text"));
            assert!(lines.clone().count() > 5 && lines.clone().all(|line| line.ends_with('>')));
        }
    }
}
