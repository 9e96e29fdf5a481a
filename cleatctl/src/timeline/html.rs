//! A timeline as one page for a browser: the same sentences, and a bar in colours for each volume.
//!
//! Goes out: one document that needs nothing else and asks for nothing: no script, no picture, no address. Always holds:
//! whatever somebody else named is text: [`Page::text`] and [`Page::attribute`] are the only ways in, and the page forbids
//! everything that it does not contain itself.

use super::{Phase, Timeline, VolumeLine, sentences};
use crate::format::lasting;
use crate::page::harmless;

const STYLE: &str = "\
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1rem;margin:1.5rem 0 .3rem;overflow-wrap:anywhere}p{margin:.2rem 0}
.bar{position:relative;height:1.6rem;background:#8883;border-radius:3px;overflow:hidden}
.bar i{position:absolute;top:0;bottom:0;min-width:1px}
.bar b{position:absolute;top:0;bottom:0;width:3px;background:#d00}
.key{display:inline-block;width:1rem;height:1rem;border-radius:3px;vertical-align:-.15rem}
.good{color:#188038}.busy{color:#b06000}.bad{color:#d00}
.allow{background:#9aa0a6}.connect{background:#1a73e8}.check{background:#12a4af}.move{background:#34a853}
.leave{background:#a8c700}.detach{background:#f29900}.prove{background:#a142f4}.end{background:#5f6368}.unknown{background:#e91e63}
td,th{padding:.1rem .8rem .1rem 0;text-align:left;vertical-align:top}
";

/// The page's text so far.
struct Page(String);

impl Page {
    /// Our own markup.
    fn markup(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, whoever named what is in it.
    fn text(&mut self, text: &str) -> &mut Self {
        for c in harmless(text).chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c => self.0.push(c),
            }
        }
        self
    }

    /// ` NAME="TEXT"`.
    fn attribute(&mut self, name: &str, text: &str) -> &mut Self {
        self.markup(" ").markup(name).markup("=\"").text(text).markup("\"")
    }

    fn element(&mut self, name: &str, text: &str) {
        self.markup("<").markup(name).markup(">").text(text).markup("</").markup(name).markup(">\n");
    }

    /// A word in the colour that it has in a terminal.
    fn state(&mut self, word: &str) -> &mut Self {
        let class = match word {
            "completed" => "good",
            "running" | "rolled_back" => "busy",
            "overdue" | "timed_out" | "failed" => "bad",
            _ => "",
        };
        self.markup("<span").attribute("class", class).markup(">").text(word).markup("</span>")
    }
}

/// The whole page.
pub(crate) fn html(timeline: &Timeline) -> String {
    let mut page = Page(String::new());
    let title = sentences::title(timeline);
    page.markup("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .markup("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n")
        .markup("<meta name=\"viewport\" content=\"width=device-width\">\n");
    page.element("title", &format!("{title}: {}", timeline.result()));
    page.markup("<style>\n").markup(STYLE).markup("</style>\n</head>\n<body>\n");
    page.markup("<h1>").text(&title).markup(": ").state(timeline.result()).markup("</h1>\n");
    for sentence in sentences::summary(timeline) {
        page.element("p", &sentence);
    }
    for line in &timeline.volumes {
        volume(&mut page, timeline, line);
    }
    legend(&mut page, timeline);
    if !timeline.others.is_empty() {
        page.element("h2", "Others of this name");
        timeline.others.iter().for_each(|other| page.element("p", &sentences::other(other)));
    }
    page.markup("</body>\n</html>\n");
    page.0
}

fn volume(page: &mut Page, timeline: &Timeline, line: &VolumeLine) {
    let after = format!("{}{}", sentences::took(line, timeline.until), sentences::own_nodes(timeline, line));
    page.markup("<section>\n<h2>").text(&line.volume).markup(": ");
    page.state(line.result()).text(&after).markup("</h2>\n");
    if let Some(outcome) = sentences::own_outcome(timeline, line) {
        page.element("p", &outcome);
    }
    let phases = sentences::phases(line, timeline.until);
    page.markup("<div class=\"bar\" role=\"img\"").attribute("aria-label", &phases).markup(">");
    for phase in line.phases.iter().filter(|phase| phase.to.is_none() || phase.lasts(timeline.until) > 0) {
        let (to, lasts) = (phase.to.unwrap_or(timeline.until), lasting(phase.lasts(timeline.until)));
        page.markup("<i")
            .attribute("class", class(phase))
            .attribute(
                "style",
                &format!(
                    "left:{};width:{}",
                    share(timeline, timeline.began, phase.from),
                    share(timeline, phase.from, to)
                ),
            )
            .attribute("title", &format!("{} {lasts}: {}", phase.name(), phase.words()))
            .markup("></i>");
    }
    if let Some(at) = line.timed_out_at {
        page.markup("<b")
            .attribute("style", &format!("left:{}", share(timeline, timeline.began, at)))
            .attribute("title", "here its time limit ended")
            .markup("></b>");
    }
    page.markup("</div>\n");
    page.element("p", &phases);
    for waits in sentences::waits(timeline, line) {
        page.element("p", &waits);
    }
    page.markup("</section>\n");
}

fn legend(page: &mut Page, timeline: &Timeline) {
    page.element("h2", "Phases");
    page.markup("<table>\n");
    for phase in sentences::legend(timeline) {
        page.markup("<tr><td><span")
            .attribute("class", &format!("key {}", class(phase)))
            .markup("></span></td><td>");
        page.text(phase.name()).markup("</td><td>").text(phase.words()).markup("</td></tr>\n");
    }
    page.markup("</table>\n");
}

/// A phase's name, which the style has a colour for, unless it is one of a newer controller.
fn class(phase: &Phase) -> &str {
    if phase.letter() == '?' { "unknown" } else { phase.name() }
}

/// The part of the migration's time between two moments, for a style.
fn share(timeline: &Timeline, from: u64, to: u64) -> String {
    let span = timeline.until.saturating_sub(timeline.began).max(1) as f64;
    format!("{:.3}%", to.saturating_sub(from) as f64 * 100.0 / span)
}
