"""``hfcompress completion``: a script that completes commands, options and recipes in a shell."""

from __future__ import annotations

from hfcompress.cli.arguments import make_parser
from hfcompress.cli.verbs import VERBS
from hfcompress.recipes.library import shipped_recipes

_WITH_FIELDS = (*VERBS, "bench")
_TAKE_RECIPES = ("run", "sensitivity", "validate")


def completion_script(shell: str) -> str:
    """Return what ``source <(hfcompress completion bash)`` reads.

    Args:
        shell: ``bash`` or ``zsh``.
    """
    options = {name: _options(name) for name in make_parser().commands}
    cases = "\n".join(f"    {name}) options='{text}' ;;" for name, text in options.items())
    recipes = " ".join(shipped_recipes())
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{head}_hfcompress() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" options="" names=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(options)} --help --version' -- "$word"))
    return
  fi
  case "$command" in
{cases}
  esac
  case "$command" in
    {"|".join(_TAKE_RECIPES)}) names='{recipes}' ;;
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W "$names" -- "$word") $(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _hfcompress hfcompress
"""


def _options(command: str) -> str:
    """The long options of a command, those of its config among them."""
    parser = make_parser(command if command in _WITH_FIELDS else None).commands[command]
    names = [name for action in parser._actions for name in action.option_strings]
    return " ".join(name for name in names if name.startswith("--"))
