"""Source-to-source step of the simulator: unmodified MSL text -> C++ for one target.

MSL is C++ plus three things an ordinary compiler cannot express: attributes
that carry meaning, address-space keywords, and threadgroup variables inside
functions. This module removes exactly those:

  1. the file is preprocessed (clang -E) against stub headers, so macros such
     as MLX's instantiate_kernel are expanded but the shim is not pulled in;
  2. a small scanner walks the declarations (namespaces, classes, functions),
     collects kernels, explicit instantiations and function constants, and edits
     the token stream in place; line markers survive, so diagnostics and run-time
     reports name the original .metal lines;
  3. entry points are generated for the kernels asked for.

Nothing else of the program is touched; expressions are compiled as written.
"""

import os
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
SHIM = os.path.join(HERE, "shim")

SPACES = {"device": "__global", "constant": "__constant", "threadgroup": "__local", "thread": "__private"}
IGNORED_SPACES = {"threadgroup_imageblock", "ray_data", "object_data"}
# Words that OpenCL reserves and MSL does not; renamed for the checker only.
OPENCL_WORDS = {
    "global",
    "local",
    "private",
    "generic",
    "kernel",
    "pipe",
    "read_only",
    "write_only",
    "read_write",
    "event_t",
    "sampler_t",
    "complex",
    "imaginary",
    "ndrange_t",
    "queue_t",
    "reserve_id_t",
    "clk_event_t",
}
POSITIONS = {
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "thread_index_in_quadgroup",
    "quadgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup",
    "quadgroups_per_threadgroup",
    "dispatch_quadgroups_per_threadgroup",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "threads_per_grid",
    "grid_size",
    "threadgroups_per_grid",
    "threads_per_simdgroup",
    "thread_execution_width",
    "grid_origin",
}


class MslError(Exception):
    pass


# ------------------------------------------------------------------ tokens --
TOKEN = re.compile(
    r"""
    (?P<pp>\#[^\n]*)
  | (?P<str>(?:u8|[uUL])?R"(?P<d>[^(\s]*)\(.*?\)(?P=d)" | (?:u8|[uUL])?"(?:\\.|[^"\\\n])*")
  | (?P<chr>'(?:\\.|[^'\\\n])+')
  | (?P<num>\.?[0-9](?:[eEpP][+-]|[0-9A-Za-z_.'])*)
  | (?P<id>[A-Za-z_$][A-Za-z0-9_$]*)
  | (?P<op><<=|>>=|<=>|\.\.\.|->\*|::|->|\+\+|--|<<|<=|>=|==|!=|&&|\|\||\+=|-=|\*=|/=|%=|&=|\|=|\^=|\.\*|[][{}();:?~!+*/%^&|=<>,.@\\-])  # noqa: E501
""",  # noqa: E501
    re.X | re.S,
)  # no '>>': two '>' tokens nest in template argument lists and print the same


class Tok:
    __slots__ = ("k", "out", "pre", "t", "ws")

    def __init__(self, k, t, ws):
        self.k, self.t, self.ws, self.pre, self.out = k, t, ws, "", t

    def __repr__(self):
        return self.t


def tokenize(text):
    toks, i, n = [], 0, len(text)
    while i < n:
        j = i
        while j < n and text[j] in " \t\r\n\f":
            j += 1
        if j == n:
            toks.append(Tok("eof", "", text[i:j]))
            break
        m = TOKEN.match(text, j)
        if not m:
            raise MslError("cannot tokenize near: " + text[j : j + 60])
        toks.append(Tok("str" if m.lastgroup == "d" else m.lastgroup, m.group(), text[i:j]))
        i = m.end()
    return toks


def render(toks):
    return "".join(t.ws + t.pre + t.out for t in toks)


class Func:
    """A function definition or declaration found by the scanner (token indices)."""

    def __init__(self, **kw):
        self.__dict__.update(kw)


class Kernel:
    def __init__(self, name, expr, params, host):
        self.name = name  # what the host looks up (host_name or the function's name)
        self.expr = expr  # callable expression, e.g. fp_qmv<float, 32, 4>
        self.params = params  # list of dicts: role, index, name, attr, text
        self.host = host

    def as_dict(self):
        return {"name": self.name, "expr": self.expr, "params": self.params}


# ------------------------------------------------------------- the program --
class Program:
    def __init__(self, text, target, constants=None, unroll=False, open_constants=False):
        assert target in ("cpu", "cuda", "check")
        self.open_constants = open_constants
        self.target, self.unroll = target, unroll
        self.constants = dict(constants or {})
        self.t = tokenize(text)
        self.kernels = {}  # host-visible name -> Kernel
        self.generic = {}  # kernel template name -> params
        self.function_constants = {}  # name -> (index, type)
        self.warnings = []
        self.seen = set()
        self.defined = {}  # function constant name -> given by the caller?
        self.tg_vars = 0
        self.swizzles = set()
        self.scan_scope(0, len(self.t), (), None)
        self.finish_tokens()

    # -- navigation --
    def match(self, i):
        """Index of the bracket that closes the one at i."""
        pairs = {"(": ")", "[": "]", "{": "}"}
        want, depth, t = pairs[self.t[i].t], 0, self.t
        o = t[i].t
        while i < len(t):
            if t[i].k == "op":
                if t[i].t == o:
                    depth += 1
                elif t[i].t == want:
                    depth -= 1
                    if depth == 0:
                        return i
            i += 1
        raise MslError("unbalanced " + o)

    def match_angle(self, i):
        """Index of the '>' closing the '<' at i."""
        try:
            return self._angle(i, True)
        except MslError:
            return self._angle(i, False)  # an inner '<' was a comparison

    def _angle(self, i, nested):
        t, depth = self.t, 0
        while i < len(t):
            x = t[i].t
            if t[i].k == "op":
                if x in "([{":
                    i = self.match(i)
                elif x == "<" and (depth == 0 or (nested and t[i - 1].k == "id")):
                    depth += 1
                elif x == ">":
                    depth -= 1
                    if depth == 0:
                        return i
                elif x in (">=", ">>=") and depth == 1:
                    return i
                elif x == ";":
                    break
            i += 1
        raise MslError("unbalanced <")

    def is_attr(self, i):
        return self.t[i].t == "[" and i + 1 < len(self.t) and self.t[i + 1].t == "["

    def text(self, a, b, skip_spaces=False):
        """Source text of tokens a..b-1 on one line, without attributes."""
        out, i = [], a
        while i < b:
            if self.is_attr(i):
                i = self.match(i) + 1
                continue
            k = self.t[i]
            if skip_spaces and k.t == "constant":
                if not self.beside_const(i):
                    out.append("const")
            elif k.k not in ("pp", "eof") and not (skip_spaces and k.t in SPACES):
                out.append(k.t)
            i += 1
        return re.sub(r"\s*(::)\s*", r"\1", " ".join(out))

    def beside_const(self, i):
        """Is the declaration-specifier sequence around token i const already?"""
        t = self.t
        for step in (-1, 1):
            j = i + step
            while 0 <= j < len(t) and (t[j].k in ("id", "pp") or t[j].t == "::"):
                if t[j].t in ("const", "constexpr"):
                    return True
                j += step
        return False

    def attrs(self, a, b):
        """[(name, [argument texts])] of every [[...]] directly in tokens a..b-1."""
        res, i = [], a
        while i < b:
            if self.is_attr(i):
                e = self.match(i)
                j = i + 2
                while j < e - 1:
                    if self.t[j].k == "id":
                        name, args = self.t[j].t, []
                        while self.t[j + 1].t == "::":
                            j += 2
                            name = self.t[j].t
                        if self.t[j + 1].t == "(":
                            c = self.match(j + 1)
                            args = list(self.t[j + 2 : c])
                            j = c
                        res.append((name, args))
                    j += 1
                i = e + 1
            elif self.t[i].t in ("(", "{"):
                i = self.match(i) + 1
            else:
                i += 1
        return res

    def blank(self, a, b):
        """Delete tokens a..b-1 but keep line markers and line breaks."""
        for k in self.t[a:b]:
            if k.k == "pp" and not k.t.startswith("#pragma"):
                continue
            k.out, k.pre = "", ""
            k.ws = "".join(c for c in k.ws if c == "\n") or " "

    # -- declarations --
    def scan_scope(self, i, end, scope, cls):
        while i < end:
            i = self.scan_decl(i, end, scope, cls)

    def scan_decl(self, i, end, scope, cls):
        t = self.t
        k = t[i]
        if k.k in ("pp", "eof") or k.t in (";", "}"):
            return i + 1
        start = i
        if k.t in ("public", "private", "protected") and t[i + 1].t == ":":
            return i + 2
        if k.t == "extern" and t[i + 1].k == "str" and t[i + 2].t == "{":
            e = self.match(i + 2)
            self.scan_scope(i + 3, e, scope, cls)
            return e + 1
        j = i + 1 if k.t == "inline" else i
        if t[j].t == "namespace":
            j += 1
            name = ""
            while t[j].t not in ("{", "=", ";"):
                name += t[j].t
                j += 1
            if t[j].t != "{":
                return self.to_semicolon(j) + 1
            e = self.match(j)
            self.scan_scope(j + 1, e, (*scope, name), None)
            return e + 1
        templ = None
        while t[i].t == "template":
            if t[i + 1].t != "<":
                return self.explicit_instantiation(start, i)
            e = self.match_angle(i + 1)
            templ = (i + 2, e)
            i = e + 1
        if t[i].t in ("using", "typedef", "static_assert", "friend", "asm") or (t[i].t == "__extension__"):
            e = self.to_semicolon(i)
            if t[i].t == "friend" and "{" in [x.t for x in t[i:e]]:
                return e + 1
            return e + 1
        return self.scan_entity(start, i, end, templ, scope, cls)

    def to_semicolon(self, i):
        t = self.t
        while t[i].t != ";":
            if t[i].t in ("(", "[", "{") and t[i].k == "op":
                i = self.match(i)
            i += 1
            if i >= len(t):
                raise MslError("missing ;")
        return i

    def scan_entity(self, start, i, end, templ, scope, cls):
        """Class, function or variable declaration beginning at i."""
        t = self.t
        class_key = init = None
        name = None
        j = i
        while j < end:
            x = t[j]
            if x.k == "pp":
                j += 1
            elif self.is_attr(j):
                j = self.match(j) + 1
            elif (
                x.t in ("alignas", "decltype", "__attribute__", "explicit", "noexcept", "typeof", "__typeof__")
                and t[j + 1].t == "("
            ):
                j = self.match(j + 1) + 1
            elif x.t in ("class", "struct", "union", "enum") and class_key is None:
                class_key = j
                j += 1
            elif x.t == "operator":
                j += 1
                if t[j].t == "(" and t[j + 1].t == ")":
                    j += 2
                    name = "operator()"
                else:
                    b = j
                    while t[j].t != "(":
                        if t[j].t == "[":
                            j = self.match(j)
                        j += 1
                    name = "operator " + self.text(b, j, True)
                return self.function(start, i, j, end, templ, scope, cls, name)
            elif x.t == "<" and t[j - 1].k == "id":
                j = self.match_angle(j) + 1
            elif x.t == "(" and init is None:
                # ( directly after the declared name: a function
                return self.function(start, i, j, end, templ, scope, cls, t[j - 1].t if t[j - 1].k == "id" else name)
            elif x.t == "=":
                init = j
                e = self.to_semicolon(j)
                self.variable(start, i, e, scope, cls)
                return e + 1
            elif x.t == "{":
                if class_key is not None:
                    e = self.match(j)
                    key = self.text(class_key, j, True)
                    if t[class_key].t != "enum":
                        if " " in key and self.target != "check" and self.duplicate(("class", scope, key)):
                            e2 = self.to_semicolon(e)
                            self.blank(start, e2 + 1)
                            return e2 + 1
                        cname = t[class_key + 1].t
                        self.scan_scope(j + 1, e, (*scope, key), cname)
                    return self.to_semicolon(e) + 1
                e = self.to_semicolon(j)
                self.variable(start, i, e, scope, cls)
                return e + 1
            elif x.t == ";":
                if class_key is None or j > class_key + 2:
                    self.variable(start, i, j, scope, cls)
                return j + 1
            elif x.t == "[":
                j = self.match(j) + 1
            else:
                j += 1
        return end

    def function(self, start, i, lp, end, templ, scope, cls, name):
        t = self.t
        rp = self.match(lp)
        j = rp + 1
        quals = j
        init = body = None
        while True:
            x = t[j]
            if x.k == "pp":
                j += 1
            elif self.is_attr(j):
                j = self.match(j) + 1
            elif x.t == "{":
                body = (j, self.match(j))
                stop = body[1]
                break
            elif x.t == ";":
                stop = j
                break
            elif x.t == "=":
                stop = self.to_semicolon(j)
                break
            elif x.t == ":":
                init = j
                j += 1
                while True:  # mem-initializers
                    while t[j].t not in ("(", "{"):
                        j = self.match_angle(j) + 1 if t[j].t == "<" and t[j - 1].k == "id" else j + 1
                    j = self.match(j) + 1
                    while t[j].k == "pp":
                        j += 1
                    if t[j].t != ",":
                        break
                    j += 1
            elif x.t in ("(", "["):
                j = self.match(j) + 1
            elif x.t == "<" and t[j - 1].k == "id":
                j = self.match_angle(j) + 1
            else:
                j += 1
        qend = init or (body[0] if body else stop)
        f = Func(
            start=start,
            specs=i,
            lp=lp,
            rp=rp,
            quals=(quals, qend),
            init=init,
            body=body,
            end=stop,
            templ=templ,
            scope=scope,
            cls=cls,
            name=name,
        )
        self.on_function(f)
        return stop + 1

    def duplicate(self, key):
        """Overloads that differ in address spaces only collapse to the first one."""
        if key in self.seen:
            return True
        self.seen.add(key)
        return False

    def on_function(self, f):
        t = self.t
        head = self.attrs(f.start, f.lp)
        spec = [x.t for x in t[f.specs : f.lp]]
        is_kernel = "kernel" in spec or any(a == "kernel" for a, _ in head)
        if f.body:
            tmpl = self.text(*f.templ) if f.templ else ""
            params = [self.text(a, b, True) for a, b in self.split(f.lp + 1, f.rp)]
            const = "const" in [x.t for x in t[f.quals[0] : f.quals[1]]]
            same = self.target != "check" or (f.cls and f.name == f.cls)
            if same and self.duplicate(
                ("fn", f.scope, tmpl, self.text(f.specs, f.lp, True), f.name, tuple(params), const)
            ):
                self.blank(f.start, f.end + 1)
                return
        for k in range(f.specs, f.lp):
            if t[k].t == "kernel":
                t[k].out = ""
        if self.target != "check":
            for k in range(*f.quals):
                if t[k].t in SPACES and t[k].k == "id":
                    t[k].out, t[k].k = "", "done"
        if is_kernel:
            params = self.kernel_params(f)
            if f.templ:
                self.generic[f.name] = params
            else:
                host = next(("".join(x.t for x in a) for n, a in head if n == "host_name"), None)
                host = self.string(host) if host else f.name
                self.kernels[host] = Kernel(host, "::".join(("mslns", *f.scope, f.name)), params, host)
            self.prefix_at(f.specs, "static ")
        if self.target == "cuda":
            friendly = spec and spec[0] not in ("friend",)
            if friendly and not self.deleted_or_defaulted(f):
                self.prefix_at(f.specs, "__device__ ")
        if self.target == "check" and f.cls and not self.is_static(f) and not self.deleted_or_defaulted(f):
            self.check_qualifiers(f)
        if f.body:
            self.function_body(f)

    def check_qualifiers(self, f):
        """Checker: address-space qualifiers of member functions."""
        t = self.t
        quals = [t[k] for k in range(*f.quals) if t[k].k == "id" and t[k].t in SPACES]
        if f.name == f.cls:
            # OpenCL constructs temporaries in the generic space: one unqualified constructor serves all.
            for k in quals:
                k.out = ""
        elif quals:
            for k in quals:
                k.out, k.k = SPACES[k.t], "done"
        else:  # MSL: no qualifier means thread
            const = next((t[k] for k in range(*f.quals) if t[k].t == "const"), t[f.rp])
            const.out += " __private"

    def is_static(self, f):
        return "static" in [x.t for x in self.t[f.specs : f.lp]] or "friend" in [x.t for x in self.t[f.specs : f.lp]]

    def deleted_or_defaulted(self, f):
        return f.body is None and any(x.t == "=" for x in self.t[f.rp : f.end])

    def split(self, a, b):
        """Split tokens a..b-1 at top-level commas."""
        res, s, i = [], a, a
        if a == b:
            return res
        while i < b:
            x = self.t[i].t
            if x in ("(", "[", "{") and self.t[i].k == "op":
                i = self.match(i)
            elif x == "<" and self.t[i - 1].k == "id":
                try:  # noqa: SIM105
                    i = self.match_angle(i)
                except MslError:
                    pass  # a comparison in a default argument
            elif x == ",":
                res.append((s, i))
                s = i + 1
            i += 1
        res.append((s, b))
        return res

    def kernel_params(self, f):
        out, nbuf, ntg = [], 0, 0
        taken = set()
        items = []
        for a, b in self.split(f.lp + 1, f.rp):
            at = {n: "".join(x.t for x in v) for n, v in self.attrs(a, b)}
            words = [x.t for x in self.t[a:b]]
            items.append((at, words, self.text(a, b)))
            if "buffer" in at and at["buffer"].isdigit():
                taken.add(int(at["buffer"]))
        for at, words, text in items:
            p = {"text": text}
            pos = [n for n in at if n in POSITIONS]
            if pos:
                p.update(role="pos", attr=pos[0])
            elif "threadgroup" in at or ("threadgroup" in words and ("*" in words or "&" in words)):
                p.update(role="tg", index=int(at["threadgroup"]) if at.get("threadgroup") else ntg)
                ntg = p["index"] + 1
            elif "device" in words or "constant" in words:
                if at.get("buffer", "").isdigit():
                    idx = int(at["buffer"])
                else:
                    while nbuf in taken:
                        nbuf += 1
                    idx = nbuf
                    taken.add(idx)
                p.update(role="buf", index=idx)
            else:
                p.update(role="unsupported", attr=" ".join(at))
            if "function_constant" in at:
                p["function_constant"] = at["function_constant"]
            out.append(p)
        return out

    def string(self, s):
        return "".join(re.findall(r'"((?:\\.|[^"\\])*)"', s))

    def explicit_instantiation(self, start, i):
        """template [[host_name("n")]] [[kernel]] decltype(f<A>) f<A>;  or  ... void f<A>(params);"""
        t = self.t
        e = self.to_semicolon(i)
        at = self.attrs(i, e)
        host = next((self.string("".join(x.t for x in a)) for n, a in at if n == "host_name"), None)
        # the declared name: the last id<...> at top level before ( or ;
        j, found = i + 1, None
        while j < e:
            if self.is_attr(j):
                j = self.match(j) + 1
            elif t[j].t == "decltype":
                j = self.match(j + 1) + 1
            elif t[j].t == "(":
                break
            elif t[j].k == "id" and t[j + 1].t == "<":
                c = self.match_angle(j + 1)
                b = j
                while t[b - 1].t == "::":
                    b -= 2
                found = (b, j, c)
                j = c + 1
            else:
                j += 1
        if found and (host or any(n == "kernel" for n, _ in at) or "kernel" in [x.t for x in t[i : found[0]]]):
            b, n, c = found
            expr = self.text(b, c + 1)
            name = host or expr
            if t[n].t in self.generic:
                self.kernels[name] = Kernel(name, expr, self.generic[t[n].t], name)
            if self.target == "check":
                # keep the instantiation, in its plain C++ form
                self.blank(start, e)
                t[start].out = f"template decltype({expr}) {expr}"
                return e + 1
        self.blank(start, e + 1)
        return e + 1

    # -- variables --
    def variable(self, start, i, e, scope, cls):
        t = self.t
        words = [x.t for x in t[i:e]]
        if "constant" not in words:
            return
        at = dict(self.attrs(i, e))
        if "function_constant" in at and not cls:
            idx = int("".join(x.t for x in at["function_constant"]))
            name = [x for k, x in self.plain(i, e)][-1]
            typ = " ".join(
                x for k, x in self.plain(i, e)[:-1] if x not in ("constant", "const", "constexpr", "static", "inline")
            )
            self.function_constants[name] = (idx, typ)
            defined = idx in self.constants
            v = self.constants.get(idx, 0)
            v = (
                ("true" if v else "false")
                if typ == "bool"
                else (repr(float(v)) + "f" if typ in ("float", "half") else str(int(v)))
            )
            self.blank(i, e)
            sp = "__constant " if self.target == "check" else ""
            if self.open_constants:
                t[i].out, t[i].k = f"static {typ} {name}", "done"
            else:
                t[i].out, t[i].k = f"static constexpr {sp}{typ} {name} = ({typ}){v}", "done"
            self.defined[name] = defined
            return
        if self.target == "check":
            return
        # Program-scope constants become const (constexpr on CUDA, where a plain
        # const float is not visible to device code; arrays go to device memory).
        eq = next((k for k in range(i, e) if t[k].t == "="), e)
        array = any(t[k].t == "[" and not self.is_attr(k) and not self.is_attr(k - 1) for k in range(i, eq))
        cuda = self.target == "cuda" and not cls
        word = "constexpr" if cuda and not array and "constexpr" not in words else "const"
        if word in words or "constexpr" in words:
            word = ""
        for k in range(i, eq):
            if t[k].t == "constant" and t[k].k == "id":
                t[k].out, t[k].k, word = word, "done", ""
        if (
            cls
            or "::" in [t[k].t for k in range(i, eq) if t[k - 1].t == ">" or t[k - 1].k == "id"]
            or "template" in [x.t for x in t[start:i]]
        ):
            return  # member, qualified definition, or variable template
        if cuda and array:
            self.prefix_at(i, "__device__ ")
        elif "static" not in words and "inline" not in words:
            self.prefix_at(i, "static ")

    def prefix_at(self, k, s):
        while self.is_attr(k) or self.t[k].k == "pp":
            k = self.match(k) + 1 if self.is_attr(k) else k + 1
        self.t[k].pre = s + self.t[k].pre

    def plain(self, a, b):
        """(kind, text) of tokens a..b-1 outside attributes and line markers."""
        out, i = [], a
        while i < b:
            if self.is_attr(i):
                i = self.match(i) + 1
                continue
            if self.t[i].k != "pp":
                out.append((self.t[i].k, self.t[i].t))
            i += 1
        return out

    # -- function bodies --
    def function_body(self, f):
        t = self.t
        i, e = f.body
        i += 1
        stmt = True  # at the start of a statement
        while i < e:
            x = t[i]
            if x.k == "pp":
                i += 1
                continue
            if self.is_attr(i):
                i = self.match(i) + 1
                continue
            if stmt and x.t in ("threadgroup", "alignas", "static", "const", "volatile"):
                j = self.threadgroup_decl(i, e, f)
                if j:
                    i = j
                    continue
            if x.t == "assert" and t[i + 1].t == "(" and t[i - 1].t not in (".", "->", "::"):
                c = self.match(i + 1)
                txt = self.text(i + 2, c).replace("\\", "\\\\").replace('"', '\\"')
                x.out = "MSL_ASSERT"
                t[i + 1].out = "(("
                t[c].out = f'), "{txt}", __FILE__, __LINE__)'
            stmt = x.t in (";", "{", "}")
            i += 1

    def threadgroup_decl(self, i, e, f):
        """threadgroup T a[N][M], b;  at statement level. Returns the index after it, or None."""
        t = self.t
        j, seen = i, False
        while t[j].t in ("threadgroup", "static", "const", "volatile", "alignas"):
            seen = seen or t[j].t == "threadgroup"
            j = self.match(j + 1) + 1 if t[j].t == "alignas" else j + 1
        if not seen:
            return None
        s = self.to_semicolon(j)
        # pointers and references to threadgroup memory are ordinary variables
        k, init = j, None
        while k < s:
            if t[k].t == "<" and t[k - 1].k == "id":
                k = self.match_angle(k)
            elif t[k].t in ("*", "&", "(") and t[k].k == "op":
                return None
            elif t[k].t == "[":
                k = self.match(k)
            elif t[k].t == "=":
                init = k
                break
            k += 1
        zero = init is not None
        if zero and self.text(init + 1, s) not in ("0", "{ }", "{ 0 }", "{ 0.0 }", "0.0", "0.0f", "{ 0.0f }"):
            raise MslError("threadgroup variable with an initialiser: " + self.text(i, s))
        # type: everything up to the first declarator's name
        parts = self.split(j, init or s)
        a, b = parts[0]
        k = a
        name = None
        while k < b:
            if t[k].t == "<" and t[k - 1].k == "id":
                k = self.match_angle(k)
            elif t[k].t in ("[", "{"):
                break
            elif t[k].k == "id":
                name = k
            k += 1
        typ = self.text(a, name)
        decls = []
        for q, (a, b) in enumerate(parts):
            nk = name if q == 0 else a
            dims = self.text(nk + 1, b)
            decls.append((t[nk].t, dims))
        out = []
        for nm, dims in decls:
            self.tg_vars += 1
            if self.target == "cpu":
                out.append(f'auto& {nm} = msl_tg_var<{typ} {dims}>({self.tg_vars}u, "{nm}", {int(zero)});')
            elif self.target == "cuda":
                out.append(f"__shared__ {typ} {nm} {dims};")
            else:
                out.append(f"__local auto& {nm} = msl_tg_var<{typ} {dims}>();")
        first_ws = t[i].ws
        self.blank(i, s + 1)
        t[i].ws = first_ws
        t[i].out = self.literals(" ".join(out))
        for k in t[i + 1 : s + 1]:
            k.k = "gone"
        t[i].k = "done"
        return s + 1

    # -- token-level rewriting, everywhere --
    FLOAT = re.compile(
        r"^(?:(?:[0-9']+\.[0-9']*|\.[0-9']+)(?:[eE][+-]?[0-9']+)?|[0-9']+[eE][+-]?[0-9']+|0[xX][0-9a-fA-F.']+[pP][+-]?[0-9]+)(?P<s>[fFhHlL]|bf|BF)?$"
    )

    def literal(self, s):
        """An unsuffixed floating literal is float in MSL; h and bf are half and bfloat."""
        m = self.FLOAT.match(s)
        if not m:
            return s
        suf = m.group("s")
        if not suf:
            return s + "f"
        if suf in "hH":
            return f"half({s[:-1]}f)"
        if suf in ("bf", "BF"):
            return f"bfloat({s[:-2]}f)"
        return s

    def literals(self, text):
        return "".join(k.ws + (self.literal(k.t) if k.k == "num" else k.t) for k in tokenize(text))

    def finish_tokens(self):
        t, chk, defined = self.t, self.target == "check", self.defined
        i = 0
        while i < len(t):
            k = t[i]
            if self.is_attr(i) and k.k == "op":
                e = self.match(i)
                if k.out:
                    for x in t[i : e + 1]:
                        if x.k != "pp":
                            x.out = ""
                i = e + 1
                continue
            if self.target == "cuda" and k.t == ")" and t[i + 1].t == "{" and k.out:
                self.compound_literal(i)
            if k.k == "num" and k.out:
                k.out = self.literal(k.t)
            elif k.k == "pp":
                k.out = self.directive(k.t)
            elif k.k == "id" and k.out:
                if k.t in SPACES:
                    const = (
                        "const" if k.t == "constant" and k.out == k.t and not self.beside_const(i) else ""
                    )  # constant implies const
                    k.out = f"{SPACES[k.t]} {const}" if chk else const
                elif k.t in IGNORED_SPACES:
                    k.out = ""
                elif k.t == "coherent" and t[i + 1].t == "(":
                    self.blank(i, self.match(i + 1) + 1)
                elif chk and k.t in OPENCL_WORDS and not (k.t == "private" and t[i + 1].t == ":"):
                    k.out = "msl_id_" + k.out
                elif k.t == "is_function_constant_defined" and t[i + 1].t == "(":
                    c = self.match(i + 1)
                    nm = self.text(i + 2, c)
                    if nm in defined:
                        self.blank(i, c + 1)
                        k.out = "true" if defined[nm] else "false"
                elif i and t[i - 1].t in (".", "->") and re.fullmatch(r"[xyzw]{2,4}|[rgba]{2,4}", k.t):
                    self.swizzles.add(k.t)
            i += 1

    def compound_literal(self, rp):
        """(float4) { ... } -> float4 { ... } (NVRTC has no compound literals)."""
        t, i = self.t, rp - 1
        while t[i].k == "id" or t[i].t in ("::", "<", ">", ",") or t[i].k == "num":
            i -= 1
        if (
            t[i].t == "("
            and i < rp - 1
            and not (t[i - 1].k == "id" and t[i - 1].t not in ("return", "case"))
            and t[i - 1].t not in (")", "]", ">")
            and t[i - 2].t != "operator"
        ):
            t[i].out, t[rp].out = " ", ""

    def directive(self, s):
        m = re.match(r'#\s*(\d+)\s+("(?:\\.|[^"])*")', s)
        if m:
            return f"#line {m.group(1)} {m.group(2)}"
        if re.match(r"#\s*pragma\s+(clang\s+loop\s+unroll\s*\((full|enable)\)|unroll\b)", s):
            if self.target == "cuda":
                return "#pragma unroll"
            return "#pragma clang loop unroll(full)" if self.unroll else ""
        if re.match(r"#\s*pragma\s+clang\s+loop\s+unroll\s*\(disable\)", s) and self.target == "cuda":
            return "#pragma unroll 1"
        return ""

    def swizzle_macros(self):
        out = []
        for n in (2, 3, 4):
            items = []
            for s in sorted(self.swizzles):
                al = "xyzw" if s[0] in "xyzw" else "rgba"
                idx = [al.index(c) for c in s]
                if max(idx) < n:
                    items.append(f"S({s}, {', '.join(map(str, idx))})")
            out.append(f"#define MSL_SWZ{n}(S) " + " ".join(items))
        return "\n".join(out) + "\n"


# ------------------------------------------------------------ preprocessing --
def preprocess(source, include_dirs=(), defines=(), compiler="clang-19", metal_version="320", filename=None):
    """clang -E with the stub headers; source is a path or MSL text."""
    args = [
        compiler,
        "-E",
        "-x",
        "c++",
        "-std=c++17",
        "-undef",
        "-nostdinc",
        "-ffreestanding",
        "-D__METAL__=1",
        f"-D__METAL_VERSION__={metal_version}",
        "-D__METAL_MACOS__=1",
        "-D__APPLE__=1",
        "-D__HAVE_BFLOAT__=1",
        "-D__HAVE_SIMDGROUP_MATRIX__=1",
        "-D__HAVE_SIMDGROUP_REDUCTION__=1",
        "-D__HAVE_SIMDGROUP_SHUFFLE_AND_FILL__=1",
        "-include",
        os.path.join(SHIM, "pp", "msl_macros.h"),
        "-isystem",
        os.path.join(SHIM, "pp"),
    ]
    for d in include_dirs:
        args += ["-I", d]
    for d in defines.items() if isinstance(defines, dict) else [(d, None) for d in defines]:
        args.append("-D" + d[0] + ("" if d[1] is None else f"={d[1]}"))
    is_path = "\n" not in source and os.path.exists(source)
    p = subprocess.run(
        args + ([source] if is_path else ["-"]), input=None if is_path else source, capture_output=True, text=True
    )
    if p.returncode:
        raise MslError("preprocessing failed:\n" + p.stderr)
    text = p.stdout
    if not is_path:
        text = text.replace('"<stdin>"', '"%s"' % (filename or "source.metal"))
    return text


# ------------------------------------------------------------- entry points --
def symbol(name):
    return "mslk_" + re.sub(r"\W", "_", name)


def call(k):
    args = []
    for p in k.params:
        if p["role"] == "buf":
            args.append(f"msl_buf{{bufs[{p['index']}]}}")
        elif p["role"] == "tg":
            args.append(f"msl_buf{{tg[{p['index']}]}}")
        elif p["role"] == "pos":
            args.append(f"msl_{p['attr']}(t)")
        else:
            raise MslError(f'kernel {k.name}: unsupported parameter "{p["text"]}" [[{p["attr"]}]]')
    return f"{k.expr}({', '.join(args)});"


def entries(prog, names):
    out = []
    for n in names:
        k = prog.kernels[n]
        if prog.target == "cpu":
            out.append(
                f'extern "C" void {symbol(n)}(void** bufs, void** tg, const msl_thread* tp) {{\n'
                f"  const msl_thread& t = *tp; (void)t; (void)bufs; (void)tg;\n  {call(k)}\n}}\n"
            )
        else:
            ntg = 1 + max([p["index"] for p in k.params if p["role"] == "tg"], default=-1)
            body = ""
            if ntg:
                body = (
                    "  extern __shared__ __align__(16) unsigned char msl_dyn[];\n"
                    + f"  void* tg[{ntg}];\n"
                    + "".join(f"  tg[{i}] = msl_dyn + tgoff[{i}];\n" for i in range(ntg))
                )
            out.append(
                f'extern "C" __global__ void {symbol(n)}(void* const* __restrict__ bufs, const unsigned* __restrict__ tgoff) {{\n'  # noqa: E501
                f"  msl_thread t = msl_this_thread(); (void)t; (void)tgoff;\n{body}  {call(k)}\n}}\n"
            )
    return "".join(out)


def generate(text, target, names=None, constants=None, unroll=False, open_constants=False):
    """Returns (C++ source, Program). names: kernels to give entry points (None: all).

    open_constants: function constants are variables, which msl_set_constants(values by number) sets.
    """
    p = Program(text, target, constants, unroll, open_constants)
    if names is None:
        names = list(p.kernels)
    for n in names:
        if n not in p.kernels:
            raise MslError(f"no kernel named {n}; have: " + ", ".join(list(p.kernels)[:20]))
    macro = {"cpu": "MSL_CPU", "cuda": "MSL_CUDA", "check": "MSL_CHECK"}[target]
    src = (
        f"// generated by translator.py, target {target}\n#define {macro} 1\n"
        + p.swizzle_macros()
        + '#include "msl.h"\nnamespace mslns {\n'
        + render(p.t)
    )
    if target != "check":
        src += '\n#line 1 "entry_points"\n' + entries(p, names)
    if open_constants:
        settings = [f"  {name} = {typ}(values[{index}]);\n" for name, (index, typ) in p.function_constants.items()]
        src += 'extern "C" void msl_set_constants(const unsigned* values) {\n' + "".join(settings) + "}\n"
    src += "\n} // namespace mslns\n"
    return src, p
