import re, pytest
from orqo import people, clock
def test_smoke(box, client, worker):
    from orqo import executor
    hook=box.hook(); 
    r=client.post(hook,json={"name":"<script>"}); assert r.status_code==201
    executor.work()
    box.apply("name: bad\ndescription: d\ncallbacks:\n  - {url: 'http://127.0.0.1:1/x', events: [completed, failed]}\nstages:\n  - name: a\n    script: echo err >&2; exit 3\n    retry: {attempts: 2, delay: 100ms}\n    on_error: c\n  - name: b\n    stub: {}\n  - name: c\n    command: [sh, '-c', 'echo hi; exit 1']\n")
    box.accept("bad"); executor.work()
    with box.database.transaction() as c: t=people.make_link(c,now=clock.now())
    r=client.get("/"); assert r.status_code==303, r.headers
    r=client.get("/sign-in?link="+t); assert r.status_code==200
    csrf=re.search(r'name="csrf" value="(\w+)"',r.text)[1]
    r=client.post("/sign-in/link",data={"csrf":csrf,"link":t,"name":"","password":""}); assert r.status_code==303, r.text
    for path in ["/","/live","/workflows","/workflows/hello","/workflows/bad","/workflows/bad/runs","/workflows/bad/runs/live","/workflows/hello/runs","/workflows/bad/callbacks","/workflows/hello/edit","/new-workflow","/runs","/runs/live","/runs?status=failed","/runs/1","/runs/1/live","/runs/2","/runs/1/input","/runs/1/output","/runs/1/stages/1/output","/deliveries","/deliveries/1","/received","/settings/tokens","/settings/people","/settings/instance","/nope","/runs/99","/static/orqo.css","/sign-in"]:
        r=client.get(path); print(r.status_code,path,len(r.data), dict(r.headers).get("Content-Type"))
        assert r.status_code<500, r.text
