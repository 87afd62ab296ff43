"""Small changes of a function's or class's source: each a mutant that a good check must not pass."""
import ast
import copy
import inspect
import textwrap

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
         ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And}


def changes(tree):
    "(what is changed, a function that changes it in a copy of the tree) for each place."
    for n, node in enumerate(ast.walk(tree)):
        where = f"line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
            yield f"{where}: {type(node.op).__name__}", n, lambda x: setattr(x, "op", SWAPS[type(x.op)]())
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield f"{where}: {type(node.ops[0]).__name__}", n, lambda x: x.ops.__setitem__(0, SWAPS[type(x.ops[0])]())
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield f"{where}: -x becomes x", n, lambda x: setattr(x, "op", ast.UAdd())
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield f"{where}: {node.value} plus 1", n, lambda x: setattr(x, "value", x.value + 1)
        if isinstance(node, ast.Constant) and type(node.value) is bool:
            yield f"{where}: not {node.value}", n, lambda x: setattr(x, "value", not x.value)
        for field in ("body", "orelse"):
            body = getattr(node, field, None)
            if not isinstance(body, list): continue
            for i, line in enumerate(body):
                if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant): continue  # a docstring
                if isinstance(line, ast.FunctionDef | ast.ClassDef) and isinstance(node, ast.Module): continue
                leave_out = lambda x, field=field, i=i: getattr(x, field).__setitem__(i, ast.Pass())
                yield f"line {line.lineno}: left out", n, leave_out
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            yield f"{where}: without its decorators", n, lambda x: setattr(x, "decorator_list", [])


def mutants(answer):
    "(what was changed, the changed function or class) for each place in the answer's source."
    tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    for what, n, change in changes(tree):
        other = copy.deepcopy(tree)
        change(list(ast.walk(other))[n])
        space = dict(inspect.getmodule(answer).__dict__)
        exec(compile(ast.fix_missing_locations(other), f"<mutant, {what}>", "exec"), space)
        yield what, space[answer.__name__]
