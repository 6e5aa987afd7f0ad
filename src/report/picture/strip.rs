//! A picture as lines of text, for a terminal.

use crate::report::picture::{Picture, Share, Shows, size, ticks};

/// How a picture is shown on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Characters in a line.
    pub width: usize,
    /// Colours by escape sequences.
    pub colours: bool,
    /// Characters beyond ASCII.
    pub unicode: bool,
}

impl Style {
    fn letter(self, share: Option<Share>) -> char {
        let letters = if self.unicode {
            [' ', '·', '▁', '▂', '▄', '▆', '█']
        } else {
            [' ', '.', '-', ':', '+', '*', '#']
        };
        letters[share.map_or(0, |share| share as usize + 1)]
    }

    /// The escape sequence that begins what shows something.
    fn colour(self, shows: Shows) -> &'static str {
        match shows {
            _ if !self.colours => "",
            Shows::Data => "\x1b[34m",
            Shows::Difference => "\x1b[1;31m",
        }
    }

    fn end(self) -> &'static str {
        if self.colours { "\x1b[0m" } else { "" }
    }
}

impl Picture {
    /// The picture in lines.
    pub fn lines(&self, style: Style) -> Vec<String> {
        if self.count == 0 {
            return vec!["there is nothing to show: no bytes".into()];
        }
        let margin = self.bands.iter().map(|band| band.label.chars().count()).max().unwrap_or(0) + 1;
        let width = style.width.saturating_sub(margin).max(16);
        let mut lines = Vec::new();
        for band in &self.bands {
            let mut strip = String::new();
            let mut is_marked = false;
            for part in 0..width {
                let share = self.share(band, part, width);
                let marks = share.is_some_and(|share| share != Share::None);
                if marks != is_marked {
                    strip.push_str(if marks { style.colour(band.shows) } else { style.end() });
                    is_marked = marks;
                }
                strip.push(style.letter(share));
            }
            if is_marked {
                strip.push_str(style.end());
            }
            lines.push(format!("{:<margin$}{}", band.label, strip.trim_end()));
        }
        lines.push(format!("{:<margin$}{}", "", self.scale(width)));
        let column = self.length.div_ceil(width as u64);
        let [hole, rest @ ..] =
            [Share::None, Share::Trace, Share::Little, Share::Some, Share::Much, Share::Most]
                .map(|share| style.letter(Some(share)));
        let rest = rest.iter().collect::<String>();
        let differs = self.bands.iter().any(|band| band.shows == Shows::Difference);
        let what = if differs { "data, or what differs" } else { "data" };
        lines.push(format!(
            "{:<margin$}{hole} zeros, {rest} how much is {what}; a column is {}",
            "",
            size(column)
        ));
        lines
    }

    /// Numbers below the strips, each behind a mark where it belongs: as many as there is room for.
    fn scale(&self, width: usize) -> String {
        let ticks = ticks(self.length);
        let fitting = (1..).find_map(|step| self.scale_of(&ticks, step, width));
        fitting.unwrap_or_default()
    }

    /// The scale with every so manyth number, if there is room.
    fn scale_of(&self, ticks: &[(u64, String)], step: usize, width: usize) -> Option<String> {
        let mut line = String::new();
        for (nth, (at, text)) in ticks.iter().enumerate().step_by(step) {
            let place = (u128::from(*at) * width as u128 / u128::from(self.length)) as usize;
            // The last one stands before its mark where there is no room behind it.
            let (text, place) = if place + text.len() < width || line.is_empty() {
                (format!("|{text}"), place)
            } else {
                (format!("{text}|"), place.min(width - 1).saturating_sub(text.len()))
            };
            if place < line.len() + usize::from(!line.is_empty()) {
                // The end of the strip speaks for itself.
                if nth + 1 == ticks.len() {
                    break;
                }
                return None;
            }
            line.push_str(&" ".repeat(place - line.len()));
            line.push_str(&text);
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let mut picture = Picture::new(1 << 30);
        let a = picture.add_band("A", "a.img", Shows::Data, 1 << 30);
        let differs = picture.add_band("differs", "", Shows::Difference, 1 << 30);
        picture.mark(a, &(0..1 << 28));
        picture.mark(differs, &(0..4096));
        picture
    }

    #[test]
    fn strips_fit_the_width_and_have_colours_only_where_there_are_any() {
        for width in [40, 80, 120] {
            let lines = picture().lines(Style { width, colours: false, unicode: false });
            assert!(lines[..3].iter().all(|line| line.len() <= width && line.is_ascii()), "{lines:?}");
            assert!(lines[0].starts_with("A       ##") && lines[1].starts_with("differs -."), "{lines:?}");
            assert!(lines[2].trim_end().contains(" |600 MiB") || lines[2].contains(" |400 MiB"), "{lines:?}");
        }
        let lines = picture().lines(Style { width: 80, colours: true, unicode: true });
        assert!(lines[0].contains("\x1b[34m█") && lines[1].contains("\x1b[1;31m▁\x1b[0m·"), "{lines:?}");
        assert!(
            Picture::new(0).lines(Style { width: 80, colours: true, unicode: true })[0].contains("nothing")
        );
    }
}
