"""A hundred strings that models, data sets and command lines may bring, and that a page must show as text."""

_FLAG = "window.harmed=1;alert(1)"
_MARKUP = [
    f"<script>{_FLAG}</script>", f"</script><script>{_FLAG}</script>", f"<ScRiPt>{_FLAG}</sCrIpT>",
    f"<script\n>{_FLAG}</script\n>", f"<img src=x onerror='{_FLAG}'>", f'<img src=x onerror="{_FLAG}">',
    f"<img src=x onerror={_FLAG}>", f"<svg onload={_FLAG}>", f"<svg><script>{_FLAG}</script></svg>",
    f"<body onload={_FLAG}>", f"<iframe src='javascript:{_FLAG}'></iframe>", f"<iframe srcdoc='<script>{_FLAG}</script>'>",
    f"<a href='javascript:{_FLAG}'>x</a>", f"<details open ontoggle={_FLAG}>", f"<input autofocus onfocus={_FLAG}>",
    f"<video><source onerror={_FLAG}></video>", f"<math><mtext><script>{_FLAG}</script>", f"<object data='javascript:{_FLAG}'>",
    f"<embed src='javascript:{_FLAG}'>", f"<form action='javascript:{_FLAG}'><button>x", f"<style>@import 'x';</style><b onclick={_FLAG}>",
    f"<base href='javascript:{_FLAG}//'>", f"<meta http-equiv=refresh content='0;url=javascript:{_FLAG}'>",
    "<link rel=stylesheet href='https://example.org/x.css'>", "<img src='https://example.org/x.png'>",
    f"\"><script>{_FLAG}</script>", f"'><script>{_FLAG}</script>", f"\" onmouseover=\"{_FLAG}", f"' onfocus='{_FLAG}' autofocus='",
    f"` onclick=`{_FLAG}`", f"--><script>{_FLAG}</script><!--", "<!--", "-->", "<!-- <script>", "<!--<script>", "]]>", "<![CDATA[x]]>",
    "<?php x ?>", "<?xml version='1.0'?>", "<!doctype html>", "</html>", "</body></html>", "</main></section></div>", "</pre></article>",
    f"</textarea><script>{_FLAG}</script>", f"</title><script>{_FLAG}</script>", f"</style><script>{_FLAG}</script>",
    f"</noscript><img src=x onerror={_FLAG}>", f"<template><script>{_FLAG}</script></template>", "<plaintext>", "<xmp>", "<table><tr><td>",
]  # fmt: skip
_DATA = [
    '{"a": "</script>"}', f'"}}]}}</script><script>{_FLAG}</script>', '"]}', "\\", "\\\\", '\\"', "\\u003cscript\\u003e", "\\ud800",
    "&lt;script&gt;", "&amp;amp;", "&#60;script&#62;", "&#x3c;b&#x3e;", "%3Cscript%3E", "%00", "#items?task=x&q=y", "?item=1&item=2#x",
    "../../etc/passwd", "a;b=c", "+plus+ and %2B", "=cmd|' /C calc'!A0",
]  # fmt: skip
_TEMPLATES = [
    "{{ 7 * 7 }}", "{% for x in y %}", "{%- include '/etc/passwd' -%}", "{# comment #}", "${window.harmed=1}", f"`${{{_FLAG}}}`", "#{7*7}",
    "<%= 7 * 7 %>", "{{constructor.constructor('window.harmed=1')()}}", "__proto__", "constructor", "toString",
]  # fmt: skip
_CHARACTERS = [
    "a\0b", "\x1b[31mred\x1b[0m\x07\x08", "\u202eright to left\u202c", "\u2066isolate\u2069 \u200e\u200f\u061c", "one\u2028two\u2029three",
    "caf\udce9 (a byte that is no UTF-8)", "lone \ud83d and \ude00 halves", "whole \U0001f600 and \U0001f468‍\U0001f469‍\U0001f467", "\ufeff\ufffe\uffff",
    "zero\u200bwidth\u2060\u00ad", "a\r\nb\rc\x85d\x0be", "\u0130stanbul \u1e9e \ufb01 ss", "e\u0301" + "\u0300" * 200,
]  # fmt: skip
_LONG = ["x" * 2**20, "<b>" * (2**20 // 3), "日本語" * (2**20 // 9)]

HOSTILE = (*_MARKUP, *_DATA, *_TEMPLATES, *_CHARACTERS, *_LONG)
