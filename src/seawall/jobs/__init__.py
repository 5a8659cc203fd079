"""One file per verb: the stages in order, each with its inputs. Methods do not know each other; this layer does.

run.py        seawall run: profile, select, repair, evaluate, report
evaluate.py   seawall eval
audit.py      seawall audit
steer.py      seawall steer
gene.py       seawall gene extract
tune.py       seawall tune
landscape.py  seawall landscape
diff.py       seawall diff
gate.py       seawall gate
export.py     delta and checkpoint of a run
apply.py      seawall apply
facts.py      tables of seawall plan, doctor and diff
compared.py   tables of two compared evaluations
evaluated.py  the page of an evaluation, alone or against another
doctor.py     seawall doctor
needs.py      what each verb would need, for seawall doctor
plan.py       seawall plan
report.py     seawall report, and the inputs of every page
verify.py     seawall verify
summary.py    summary.json, the stable contract (docs/run-folder.md)
"""
